/* The thread pool of csrc/common/parallel.c under ThreadSanitizer: several callers at once, sizes and thread counts that change,
 * tasks that fail, a fork in between. Prints the number of loops; exit status 1 where an element was not written exactly once. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/parallel.h"

enum { CALLERS = 4, LOOPS = 400, MOST = 3000 };

typedef struct {
    int *count;
    wasi_int fails_at; /* -1: nowhere */
} loop;

static wasi_status visit(void *ctx, wasi_int begin, wasi_int end, int part)
{
    loop *l = ctx;
    for (wasi_int i = begin; i < end; i++) {
        l->count[i]++;
        if (i == l->fails_at)
            return WASI_ERR_RANGE;
    }
    return part < 0 ? WASI_ERR_RANGE : WASI_OK;
}

static void *call(void *argument)
{
    unsigned state = (unsigned)(size_t)argument + 1;
    int *count = calloc(MOST, sizeof *count);
    for (int round = 0; round < LOOPS; round++) {
        wasi_int n = rand_r(&state) % MOST, fails_at = round % 7 == 0 ? n / 2 : -1;
        int threads = 1 + rand_r(&state) % 4;
        loop l = {count, fails_at};
        for (int i = 0; i < MOST; i++)
            count[i] = 0;
        wasi_set_num_threads(threads);
        wasi_status status = wasi_parallel(threads, n, 1 + rand_r(&state) % 64, visit, &l);
        int failed = fails_at >= 0 && n > 0;
        if (failed != (status == WASI_ERR_RANGE)) {
            fprintf(stderr, "status %d of a loop that %s\n", status, failed ? "fails" : "does not fail");
            exit(1);
        }
        for (wasi_int i = 0; i < MOST && !failed; i++) {
            if (count[i] != (i < n)) {
                fprintf(stderr, "element %td of %td was visited %d times\n", i, n, count[i]);
                exit(1);
            }
        }
    }
    free(count);
    return NULL;
}

static void call_from_all(void)
{
    pthread_t threads[CALLERS];
    for (size_t i = 0; i < CALLERS; i++)
        pthread_create(&threads[i], NULL, call, (void *)i);
    for (size_t i = 0; i < CALLERS; i++)
        pthread_join(threads[i], NULL);
}

int main(void)
{
    call_from_all();
    pid_t child = fork(); /* of the pool only the calling thread is left there */
    if (child == 0) {
        call((void *)9);
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (status != 0) {
        fprintf(stderr, "the child ended with %d\n", status);
        return 1;
    }
    call_from_all();
    printf("%d loops\n", 2 * CALLERS * LOOPS + LOOPS);
    return 0;
}
