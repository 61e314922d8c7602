// Lines of the protocol: bounded requests in, events out, one writer at a time.
#pragma once
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

using json = nlohmann::ordered_json;  // a template may list the keys of a message in their order

// What a request gets in place of an answer. `more` is added to the event.
struct Refusal : std::runtime_error {
    std::string code;
    json more;
    Refusal(std::string c, const std::string & message, json m = json::object())
        : std::runtime_error(message), code(std::move(c)), more(std::move(m)) {}
};

enum class Line { ok, too_long, end };

// The next line of standard input without its newline; what is longer than 1 MiB is read to its end and dropped.
Line read_line(std::string & line);

// The request in a line. Throws Refusal for anything but an object, and beyond 64 levels.
json parse_request(const std::string & line);

void emit(const json & event);
json error_event(int64_t id, const Refusal & refusal);

// A number of a request within [low, high], or `otherwise` where there is none. Throws Refusal.
int64_t whole(const json & request, const char * key, int64_t low, int64_t high, int64_t otherwise);
double real(const json & request, const char * key, double low, double high, double otherwise);
std::string text_of(const json & request, const char * key);
