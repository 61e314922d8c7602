// What a stranger's file may do wrong, a process of its own does: it may crash, or never end.
#pragma once
#include "wire.h"

#include <functional>

// The JSON that `work` returns in a forked process. A Refusal thrown in it is thrown here; where it ends by a signal,
// takes more than `seconds` of computing, or says more than 64 MB, that is a Refusal with `code` and `what` failed.
json in_child(const char * code, const std::string & what, int seconds, const std::function<json()> & work);
