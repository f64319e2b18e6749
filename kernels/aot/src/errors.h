// The message of the last failing call, per thread.
#pragma once

#include "kunlun_kernels.h"

namespace kunlun {

// Records a printf-style message for kunlun_last_error() and returns `status`.
[[gnu::format(printf, 2, 3)]] kunlun_status fail(kunlun_status status, const char* format, ...);

}  // namespace kunlun
