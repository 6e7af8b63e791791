#!/usr/bin/env bash
# The core under sanitizers, in a folder of its own; a finding ends it with a report of the line.
#
#     tools/sanitize.sh address           red zones, undefined behaviour: every binding called well and badly, then all tests
#     tools/sanitize.sh address --part 2/5    a fifth of that, for who has minutes and not an hour
#     tools/sanitize.sh address --quick   bad calls of every binding, and some kernels on small shapes: a test of the suite
#     tools/sanitize.sh address -k linear the tests that pytest is told to take
#     tools/sanitize.sh leak              every binding, and what it left behind
#     tools/sanitize.sh thread            the thread pool, by a plain C driver
#     tools/sanitize.sh valgrind          kernels, by a plain C driver
#     tools/sanitize.sh malloc            the tests of the bindings with Python's own checks of its memory
#
# Python is not built with them, so their runtime is loaded first, and libstdc++ with it for the sake of matplotlib.
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:?address, leak, thread, valgrind or malloc}
shift
work=${WASI_SANITIZE_FOLDER:-build/sanitize}
export OMP_NUM_THREADS=1

build() {
    mkdir -p "$work"
    cp -r $(ls -d .ci csrc wasi tests benchmarks docs tools notebooks setup.py pyproject.toml MANIFEST.in LICENSE ./*.md ./*.cff \
        2> /dev/null) "$work"  # a source distribution lacks some of them
    rm -f "$work"/wasi/_core*.so
    (cd "$work" && WASI_SANITIZE=address,undefined python setup.py -q build_ext --inplace)
}

watched() {
    LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so)" PYTHONPATH=. "$@"
}

# Left out: answers within a second or a minute, for everything is several times slower here; limits on address space, which the
# shadow memory alone exceeds; measured memory and speed; rounding as good as PyTorch's, for which loops must be vectorised.
left_out="within_a or at_once_and_by_name or killed_at_random or gibibyte or beyond_the_limit_is_refused_before_the \
or too_little_memory or mapped_file_that_is_cut or what_the_step_touches or what_setup_keeps or freed_memory_is_given_back \
or full_ones_are_merged or test_norm and matches_torch"

# Each file of tests in a process of its own, so that one finding does not hide the others.
by_file() {
    local part=${1%/*} parts=${1#*/} i=0 failed=() began words
    for file in bindings $(ls tests/test_*.py | grep -v test_sanitized); do
        [ $((i++ % parts)) -eq $((part - 1)) ] || continue
        words=(-m pytest -q -p no:cacheprovider "$file" -k "not ($left_out)")
        [ "$file" != bindings ] || words=(tests/stress/bindings.py --calls 500)
        began=$SECONDS
        watched python "${words[@]}" > log 2>&1 || [ $? -eq 5 ] || failed+=("$file")  # 5: no test of this file was wanted
        echo "$file: $((SECONDS - began)) s, $(tail -n 1 log)"
        [[ " ${failed[*]} " != *" $file "* ]] || cat log
    done
    [ ${#failed[@]} -eq 0 ] || { echo "found in: ${failed[*]}"; exit 1; }
}

case $kind in
address)
    build
    cd "$work"
    # Into files: pytest keeps what a process writes until its test is over, which this one does not live to see.
    export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=4:log_path=$PWD/report
    export UBSAN_OPTIONS=print_stacktrace=1:log_path=$PWD/report
    rm -f report.*
    trap 'cat report.* 2> /dev/null || true' EXIT
    case ${1:-} in
    --quick)
        watched python -m pytest -q -p no:cacheprovider tests/test_bindings.py -k "refused or sizes or numbers or sequences or list"
        watched python -m pytest -q -p no:cacheprovider tests/test_conv.py tests/test_linear.py
        ;;
    "" | --part) by_file "${2:-1/1}" ;;
    *) watched python -m pytest -q -p no:cacheprovider "$@" ;;
    esac
    ;;
leak)
    build
    cd "$work"
    # Python keeps much to its end: of what is not freed, that counts which the core itself asked for.
    export ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1:log_path=$PWD/leaks LSAN_OPTIONS=exitcode=0 PYTHONMALLOC=malloc
    rm -f leaks.*
    watched python tests/stress/bindings.py --calls 100
    python - leaks.* <<'END'
import re
import sys

leaks = [block for name in sys.argv[1:] for block in open(name, errors="replace").read().split("\n\n") if "leak of" in block]
ours = [block for block in leaks if re.search(r"#[12] .*wasi/_core|#[12] .*csrc/", block)]
print(f"{len(leaks)} blocks of others at the end, {len(ours)} of the core's")
sys.exit("\n\n".join(ours) if ours else 0)
END
    ;;
thread)
    mkdir -p "$work"
    for compiler in gcc clang; do
        command -v $compiler > /dev/null || continue
        $compiler -g -O1 -fsanitize=thread -Icsrc tests/native/pool.c csrc/common/parallel.c -pthread -o "$work/pool"
        TSAN_OPTIONS=die_after_fork=0 "$work/pool"
    done
    ;;
valgrind)
    mkdir -p "$work"
    openblas=$(python -c "import importlib.util as u; print(u.find_spec('scipy_openblas32').submodule_search_locations[0])")
    for simd in csrc/kernels/*_simd.c; do
        gcc -g -O1 -fopenmp-simd -w -Icsrc -DWASI_ISA=plain -DWASI_ISA_PLAIN=1 -c "$simd" -o "$work/$(basename "$simd" .c)_plain.o"
        gcc -g -O1 -fopenmp-simd -w -Icsrc -DWASI_ISA=avx2 -DWASI_ISA_AVX2=1 -mavx2 -mfma -mf16c -c "$simd" \
            -o "$work/$(basename "$simd" .c)_avx2.o"
        gcc -g -O1 -fopenmp-simd -w -Icsrc -DWASI_ISA=avx512 -DWASI_ISA_AVX512=1 -mavx512f -mavx512bw -mavx512dq -mavx512vl \
            -mavx512vnni -mfma -mf16c -c "$simd" -o "$work/$(basename "$simd" .c)_avx512.o"
    done
    gcc -g -O1 -w -Icsrc -I"$openblas/include" -DWASI_BLAS_WHEEL=1 tests/native/kernels.c "$work"/*_simd_*.o \
        $(ls csrc/kernels/*.c csrc/common/*.c | grep -v _simd.c) -L"$openblas/lib" -lscipy_openblas -Wl,-rpath,"$openblas/lib" \
        -lm -pthread -o "$work/kernels"
    valgrind -q --error-exitcode=1 --leak-check=full --errors-for-leak-kinds=definite --show-leak-kinds=definite "$work/kernels"
    ;;
malloc)
    PYTHONMALLOC=debug python -X dev -W ignore -m pytest -q tests/test_bindings.py tests/test_arena.py "$@"
    ;;
*)
    sed -n '2,9p' "$0"
    exit 2
    ;;
esac
echo "$kind: nothing found"
