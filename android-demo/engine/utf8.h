// Bytes of tokens, as text: whole characters only, and U+FFFD for each stretch of bytes that is none.
#pragma once
#include <string>

class Utf8 {
  public:
    // The text that is certain now; an unfinished character waits for its rest.
    std::string add(const std::string & bytes);
    std::string finish();

  private:
    std::string held;
};
