#include "common/status.h"

const char *wasi_status_text(wasi_status status)
{
    switch (status) {
    case WASI_OK:            return "no error";
    case WASI_ERR_NONFINITE: return "an input holds NaN or Inf";
    case WASI_ERR_OVERFLOW:  return "a size exceeds the 32-bit integers of BLAS";
    case WASI_ERR_MEMORY:    return "out of memory";
    case WASI_ERR_LAPACK:    return "a LAPACK decomposition did not converge";
    case WASI_ERR_RANK:      return "the rank of a factor has collapsed";
    case WASI_ERR_RANGE:     return "an index lies outside its range";
    }
    return "unknown status";
}
