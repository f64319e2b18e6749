// Messages go to the logger of whoever loaded the library; the last error is also kept per thread.
#pragma once

#include <NvInferRuntime.h>

namespace kunlun::tensorrt {

using Severity = nvinfer1::ILogger::Severity;

// Where to ask for a logger, from setLoggerFinder(); without one, errors and warnings go to stderr.
void set_logger_finder(nvinfer1::ILoggerFinder* finder);

// A printf-style message. Errors stay readable through last_error() on the same thread.
[[gnu::format(printf, 2, 3)]] void report(Severity severity, const char* format, ...);

// Never nullptr.
const char* last_error();

}  // namespace kunlun::tensorrt
