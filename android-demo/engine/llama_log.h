// llama.cpp's log: errors are kept for messages; standard error gets a bounded part of it.
#pragma once
#include <string>

void watch_log();
void forget_errors();
std::string errors();  // since `forget_errors`, in one line; "no reason given" where there are none
