#include "utf8.h"

static const char * const UNKNOWN = "\xEF\xBF\xBD";

// Length of the character that begins with this byte, and what its second byte may be (Unicode 15, table 3-7).
static size_t expected(unsigned char first, unsigned char & low, unsigned char & high) {
    low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
    high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    if (first < 0x80) {
        return 1;
    }
    if (first >= 0xC2 && first <= 0xDF) {
        return 2;
    }
    if (first >= 0xE0 && first <= 0xEF) {
        return 3;
    }
    return first >= 0xF0 && first <= 0xF4 ? 4 : 0;
}

std::string Utf8::add(const std::string & bytes) {
    held += bytes;
    std::string text;
    size_t at = 0;
    while (at < held.size()) {
        unsigned char low, high;
        const size_t length = expected((unsigned char) held[at], low, high);
        size_t good = 1;
        for (; length && good < length && at + good < held.size(); good++, low = 0x80, high = 0xBF) {
            const unsigned char next = (unsigned char) held[at + good];
            if (next < low || next > high) {
                break;
            }
        }
        if (length && good == length) {
            text.append(held, at, length);
        } else if (length && at + good == held.size()) {
            break;
        } else {
            text += UNKNOWN;
        }
        at += good;
    }
    held.erase(0, at);
    return text;
}

std::string Utf8::finish() {
    const bool rest = !held.empty();
    held.clear();
    return rest ? UNKNOWN : "";
}
