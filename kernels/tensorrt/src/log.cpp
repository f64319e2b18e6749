#include "log.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>

namespace kunlun::tensorrt {
namespace {

thread_local char error[1024] = "";
std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) { logger_finder.store(finder); }

void report(Severity severity, const char* format, ...) {
  char message[sizeof error];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  if (severity <= Severity::kERROR) std::snprintf(error, sizeof error, "%s", message);
  nvinfer1::ILoggerFinder* finder = logger_finder.load();
  nvinfer1::ILogger* logger = finder ? finder->findLogger() : nullptr;
  if (logger)
    logger->log(severity, message);
  else if (severity <= Severity::kWARNING)
    std::fprintf(stderr, "kunlun: %s\n", message);
}

const char* last_error() { return error; }

}  // namespace kunlun::tensorrt
