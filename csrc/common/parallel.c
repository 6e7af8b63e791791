#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "common/parallel.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <unistd.h>

/* One loop at a time owns the pool (`owner`). Its job is published under `lock` with a new `generation`;
 * each worker runs the one part that carries its number and counts itself off. A worker that has no
 * part in this job sleeps on. Workers are started when first wanted and never leave: they hold no
 * resources but a stack, and a process that exits takes them along. */
static struct {
    pthread_mutex_t owner, lock;
    pthread_cond_t start, finish;
    unsigned long generation;
    int n_workers; /* threads that exist, the caller not counted */
    int pending;   /* workers still busy with the current job */
    int n_parts;
    wasi_int n, step;
    wasi_task task;
    void *ctx;
    wasi_status status[WASI_MAX_THREADS];
} pool = {
    .owner = PTHREAD_MUTEX_INITIALIZER,
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .start = PTHREAD_COND_INITIALIZER,
    .finish = PTHREAD_COND_INITIALIZER,
};

static atomic_int wanted_threads;

static wasi_status run_part(wasi_task task, void *ctx, wasi_int n, wasi_int step, int part)
{
    wasi_int begin = part * step;
    return task(ctx, begin, WASI_MIN(begin + step, n), part);
}

static void *worker(void *argument)
{
    int part = (int)(intptr_t)argument; /* worker i runs part i; part 0 is the caller's */
    unsigned long seen = 0;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        while (pool.generation == seen || part >= pool.n_parts) {
            seen = pool.generation;
            pthread_cond_wait(&pool.start, &pool.lock);
        }
        seen = pool.generation;
        pthread_mutex_unlock(&pool.lock);
        wasi_status status = run_part(pool.task, pool.ctx, pool.n, pool.step, part);
        pthread_mutex_lock(&pool.lock);
        pool.status[part] = status;
        if (--pool.pending == 0)
            pthread_cond_signal(&pool.finish);
    }
    return NULL;
}

/* In the child of a fork only the forking thread exists: forget the workers. */
static void after_fork_in_child(void)
{
    pthread_mutex_init(&pool.owner, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.start, NULL);
    pthread_cond_init(&pool.finish, NULL);
    pool.n_workers = 0;
    pool.pending = 0;
    pool.n_parts = 0;
}

static void register_fork_handler(void)
{
    pthread_atfork(NULL, NULL, after_fork_in_child);
}

/* Called by the owner. Signals stay with the threads of the application. */
static void grow_pool(int n_workers)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, register_fork_handler);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool.n_workers < n_workers) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, worker, (void *)(intptr_t)(pool.n_workers + 1)) != 0)
            break;
        pthread_detach(thread);
        pool.n_workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static wasi_status run_serial(wasi_task task, void *ctx, wasi_int n, wasi_int step, int n_parts)
{
    for (int part = 0; part < n_parts; part++)
        WASI_TRY(run_part(task, ctx, n, step, part));
    return WASI_OK;
}

wasi_status wasi_parallel(int n_threads, wasi_int n, wasi_int grain, wasi_task task, void *ctx)
{
    if (n <= 0)
        return WASI_OK;
    wasi_int n_grains = (n + grain - 1) / grain;
    wasi_int step = (n_grains + n_threads - 1) / n_threads * grain;
    int n_parts = (int)((n + step - 1) / step);
    if (n_parts == 1 || pthread_mutex_trylock(&pool.owner) != 0)
        return run_serial(task, ctx, n, step, n_parts);
    grow_pool(n_parts - 1);
    if (pool.n_workers < n_parts - 1) { /* the system gave no thread: slower, same bits */
        pthread_mutex_unlock(&pool.owner);
        return run_serial(task, ctx, n, step, n_parts);
    }

    pthread_mutex_lock(&pool.lock);
    pool.task = task;
    pool.ctx = ctx;
    pool.n = n;
    pool.step = step;
    pool.n_parts = n_parts;
    pool.pending = n_parts - 1;
    pool.generation++;
    pthread_cond_broadcast(&pool.start);
    pthread_mutex_unlock(&pool.lock);

    wasi_status status = run_part(task, ctx, n, step, 0);

    pthread_mutex_lock(&pool.lock);
    while (pool.pending > 0)
        pthread_cond_wait(&pool.finish, &pool.lock);
    for (int part = 1; part < n_parts && status == WASI_OK; part++)
        status = pool.status[part];
    pool.n_parts = 0;
    pthread_mutex_unlock(&pool.lock);
    pthread_mutex_unlock(&pool.owner);
    return status;
}

int wasi_cpu_count(void)
{
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        return WASI_MIN(CPU_COUNT(&set), WASI_MAX_THREADS);
#endif
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : (int)WASI_MIN(n, WASI_MAX_THREADS);
}

int wasi_get_num_threads(void)
{
    int n = atomic_load(&wanted_threads);
    if (n == 0) {
        n = wasi_cpu_count();
        atomic_store(&wanted_threads, n);
    }
    return n;
}

void wasi_set_num_threads(int n)
{
    atomic_store(&wanted_threads, n);
}
