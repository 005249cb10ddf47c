/* All kernels for one instruction set, which SUFFIX and WIDTH name; leaves no macro behind. */

#include "vector.h"

#include "slstm.h"

#undef vec
#undef ivec
#undef uvec
#undef load
#undef store
#undef splat
#undef select
#undef at_least
#undef at_most
#undef magnitude
#undef exponential
#undef log1p_unit
#undef sigmoid
#undef hyperbolic_tangent
#undef softplus
#undef product
#undef GATE
#undef SUFFIX
#undef WIDTH
