// What the engine knows of the phone: processors, memory, its parent.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

// The fast cores among `allowed`, by cpu_capacity or else by their highest frequency under `folder`
// (/sys/devices/system/cpu): those nearer the fastest than the slowest; all of them where the folder tells neither.
std::vector<int> big_cores(const std::string & folder, const std::vector<int> & allowed);

std::vector<int> allowed_cores();
void keep_to(const std::vector<int> & cores);  // the threads that are started from now on

int64_t available_memory();  // bytes of /proc/meminfo's MemAvailable; -1 where it does not say
int64_t resident_memory();   // bytes of this process

std::vector<std::string> compiled_features();
std::string missing_feature();  // of this processor, that the program was compiled for; empty if there is none

void end_with_parent();
