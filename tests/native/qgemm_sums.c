/* The integer sums of csrc/kernels/qgemm_simd.c, for every instruction set of this machine, against a loop over the
 * format's definition. Prints "isa checksum" a line; the checksum depends on the sums alone, so it is the same
 * wherever this runs. Exit status 1 where a sum is wrong. */
#include <stdio.h>
#include <stdlib.h>

#include "common/isa.h"
#include "kernels/qgemm_simd.h"

enum { MAX_O = 70, MAX_I = 200, ROWS = WASI_TILE_ROWS, COLUMNS = WASI_PANEL_COLUMNS };

static uint32_t state = 1;

static uint32_t draw(uint32_t below)
{
    state = state * 1664525u + 1013904223u;
    return (state >> 8) % below;
}

static uint64_t checksum;

static void check(int32_t got, int64_t want, const char *what)
{
    if (got != want) {
        printf("%s: %s: expected %lld, got %d\n", wasi_isa_name(wasi_isa), what, (long long)want, got);
        exit(1);
    }
    checksum = (checksum ^ (uint32_t)got) * 1099511628211u;
}

/* q[o][i] from the packed arrays. */
static int weight_at(const wasi_quant *Q, wasi_int o, wasi_int i)
{
    const uint8_t *codes = Q->codes + o * wasi_quant_row_bytes(Q->I, Q->bits);
    if (Q->bits == 8)
        return (int8_t)codes[i];
    uint8_t byte = codes[i / 32 * 16 + i % 16];
    int code = i % 32 < 16 ? byte & 15 : byte >> 4;
    return wasi_quant_table[Q->s[o * wasi_quant_groups(Q->I, Q->group) + i / Q->group]][code];
}

static void run(const wasi_quant *Q, int forward, wasi_int rows)
{
    static float A[ROWS * MAX_I], scale[MAX_I];
    static _Alignas(64) uint8_t tile[ROWS * MAX_I * 4], panel[COLUMNS * (MAX_I + 32) * 4];
    static _Alignas(64) int32_t acc[ROWS * COLUMNS], sum[COLUMNS], z[ROWS];
    float t[ROWS];
    wasi_int N = forward ? Q->O : Q->I, K = forward ? Q->I : Q->O, units = WASI_PICK(wasi_units)(K);
    int low = -(int)draw(256); /* from low to low + 255: the scale is 1, the zero -low */
    for (wasi_int m = 0; m < rows; m++) {
        for (wasi_int k = 0; k < K; k++)
            A[m * K + k] = (float)(low + (int)draw(256));
        A[m * K] = (float)low;
        A[m * K + K - 1] = (float)(low + 255);
    }
    for (wasi_int k = 0; k < K; k++)
        scale[k] = 1;
    WASI_PICK(wasi_quantize_tile)(tile, t, z, A, scale, rows, K);
    for (wasi_int n = 0; n < N; n += COLUMNS) {
        if (forward)
            WASI_PICK(wasi_pack_rows)(panel, Q, n);
        else
            WASI_PICK(wasi_pack_columns)(panel, Q, n);
        WASI_PICK(wasi_panel_sum)(sum, panel, units);
        WASI_PICK(wasi_tile_dot)(acc, tile, panel, sum, rows, units);
        for (wasi_int m = 0; m < rows; m++) {
            check(z[m], -low, "zero");
            for (wasi_int j = 0; j < COLUMNS && n + j < N; j++) {
                int64_t want = 0;
                for (wasi_int k = 0; k < K; k++)
                    want += (int64_t)A[m * K + k] * (forward ? weight_at(Q, n + j, k) : weight_at(Q, k, n + j));
                check(acc[m * COLUMNS + j] - z[m] * sum[j], want, forward ? "forward" : "backward");
            }
        }
    }
}

int main(void)
{
    static uint8_t codes[MAX_O * (MAX_I + 32)], s[MAX_O * (MAX_I / 32 + 1)];
    static const wasi_int sizes[][2] = {{2, 2}, {3, 5}, {33, 31}, {64, 64}, {70, 200}, {5, 129}};
    wasi_isa_init();
    for (int level = WASI_ISA_LEVEL_PLAIN; level <= WASI_ISA_LEVEL_DOTPROD; level++) {
        if (!wasi_isa_select(wasi_isa_name((wasi_isa_level)level)))
            continue;
        state = 1;
        checksum = 14695981039346656037u;
        for (size_t size = 0; size < sizeof sizes / sizeof *sizes; size++)
            for (int bits = 4; bits <= 8; bits += 4)
                for (wasi_int rows = 1; rows <= ROWS; rows++) {
                    wasi_quant Q = {codes, bits == 4 ? s : NULL, NULL, NULL, sizes[size][0], sizes[size][1], 32, bits};
                    for (size_t i = 0; i < sizeof codes; i++)
                        codes[i] = (uint8_t)(bits == 4 ? draw(256) : draw(255) + 129); /* 8 bits: -127..127 */
                    for (size_t i = 0; i < sizeof s; i++)
                        s[i] = (uint8_t)draw(WASI_QUANT_SHAPES);
                    run(&Q, 1, rows);
                    run(&Q, 0, rows);
                }
        printf("%s %016llx\n", wasi_isa_name(wasi_isa), (unsigned long long)checksum);
    }
    return 0;
}
