#include "llama_log.h"

#include <llama.h>
#include <mutex>
#include <unistd.h>

static const size_t BUDGET = 60000;  // bytes: an app that never reads them must not stop us (a pipe holds 64 KiB)
static const size_t LONGEST = 400;   // bytes of a message

static std::mutex turn;
static std::string kept;
static size_t spent;

static void keep(ggml_log_level level, const char * text, void *) {
    const std::lock_guard<std::mutex> lock(turn);
    std::string line = text;
    if (level >= GGML_LOG_LEVEL_WARN && level != GGML_LOG_LEVEL_CONT && spent + line.size() < BUDGET) {
        spent += line.size();
        if (write(STDERR_FILENO, line.data(), line.size()) < 0) {
            spent = BUDGET;
        }
    }
    if (level != GGML_LOG_LEVEL_ERROR || kept.size() > LONGEST) {
        return;
    }
    for (char & c : line) {
        c = c == '\n' || c == '\r' ? ' ' : c;
    }
    line.erase(line.find_last_not_of(' ') + 1);
    kept += (kept.empty() || line.empty() ? "" : "; ") + line.substr(0, LONGEST);
}

void watch_log() {
    llama_log_set(keep, nullptr);
}

void forget_errors() {
    const std::lock_guard<std::mutex> lock(turn);
    kept.clear();
}

std::string errors() {
    const std::lock_guard<std::mutex> lock(turn);
    return kept.empty() ? "no reason given" : kept;
}
