#include "wire.h"

#include <cstdio>
#include <cstring>
#include <mutex>
#include <unistd.h>

static const size_t LONGEST = 1 << 20;  // bytes of a line
static const int DEEPEST = 64;          // levels of a request

Line read_line(std::string & line) {
    static char buffer[65536];
    static size_t at = 0, held = 0;
    bool dropped = false;
    line.clear();
    for (;;) {
        if (at == held) {
            const ssize_t n = read(STDIN_FILENO, buffer, sizeof buffer);
            if (n < 0 && errno == EINTR) {
                continue;
            }
            if (n <= 0) {
                return Line::end;
            }
            at = 0;
            held = (size_t) n;
        }
        const char * start = buffer + at;
        const char * newline = (const char *) memchr(start, '\n', held - at);
        const size_t n = newline ? (size_t) (newline - start) : held - at;
        dropped = dropped || line.size() + n > LONGEST;
        if (dropped) {
            line.clear();
        } else {
            line.append(start, n);
        }
        at += n + (newline ? 1 : 0);
        if (newline) {
            return dropped ? Line::too_long : Line::ok;
        }
    }
}

json parse_request(const std::string & line) {
    json request;
    try {
        request = json::parse(line, [](int depth, json::parse_event_t, json &) {
            if (depth > DEEPEST) {
                throw Refusal("bad_request", "a request is nested at most 64 levels deep");
            }
            return true;
        });
    } catch (const json::exception &) {
        throw Refusal("bad_request", "a line must be one JSON object in UTF-8");
    }
    if (!request.is_object()) {
        throw Refusal("bad_request", "a line must be one JSON object");
    }
    return request;
}

void emit(const json & event) {
    static std::mutex turn;
    const std::string line = event.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
    const std::lock_guard<std::mutex> lock(turn);
    for (size_t at = 0; at < line.size();) {
        const ssize_t n = write(STDOUT_FILENO, line.data() + at, line.size() - at);
        if (n < 0 && errno != EINTR) {
            _exit(0);  // nobody reads any more
        }
        at += n > 0 ? (size_t) n : 0;
    }
}

json error_event(int64_t id, const Refusal & refusal) {
    json event = {{"event", "error"}, {"id", id}, {"code", refusal.code}, {"message", refusal.what()}};
    event.update(refusal.more);
    return event;
}

static Refusal bad(const char * key, const std::string & expected) {
    return Refusal("bad_request", std::string(key) + " must be " + expected);
}

int64_t whole(const json & request, const char * key, int64_t low, int64_t high, int64_t otherwise) {
    const auto found = request.find(key);
    if (found == request.end() || found->is_null()) {
        return otherwise;
    }
    const std::string expected = "an integer from " + std::to_string(low) + " to " + std::to_string(high);
    if (!found->is_number_integer() || (found->is_number_unsigned() && found->get<uint64_t>() > (uint64_t) high)) {
        throw bad(key, expected);
    }
    const int64_t value = found->get<int64_t>();
    if (value < low || value > high) {
        throw bad(key, expected);
    }
    return value;
}

double real(const json & request, const char * key, double low, double high, double otherwise) {
    const auto found = request.find(key);
    if (found == request.end() || found->is_null()) {
        return otherwise;
    }
    const double value = found->is_number() ? found->get<double>() : low - 1;
    if (!(value >= low && value <= high)) {
        char range[64];
        snprintf(range, sizeof range, "a number from %g to %g", low, high);
        throw bad(key, range);
    }
    return value;
}

std::string text_of(const json & request, const char * key) {
    const auto found = request.find(key);
    if (found == request.end() || !found->is_string()) {
        throw bad(key, "a text");
    }
    return found->get<std::string>();
}
