/* All kernels for one instruction set, which SUFFIX and WIDTH name; leaves no macro behind. */

#include "vector.h"

#include "matrix.h"

#include "slstm_cell.h"

#include "slstm.h"

#include "mlstm.h"

#include "mlstm_mixer.h"

#include "mlstm_block.h"

#include "step.h"

#include "slstm_mixer.h"

#include "tanh_mlp.h"

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
#undef square_root
#undef gelu
#undef slstm_cell
#undef slstm_record
#undef slstm_gates
#undef slstm_gradient
#undef slstm_forward
#undef slstm_backward
#undef slstm_store
#undef slstm_load
#undef project
#undef total
#undef totals
#undef transpose
#undef multiply
#undef GATE
#undef SUFFIX
#undef WIDTH
