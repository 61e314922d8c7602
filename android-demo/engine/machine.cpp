#include "machine.h"

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <ggml-cpu.h>
#include <sched.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <unistd.h>

static const size_t MOST = 8;   // threads that wait for each other at every step

static int64_t number_in(const std::string & path) {
    std::ifstream file(path);
    int64_t value = 0;
    return file >> value && value > 0 ? value : 0;
}

std::vector<int> big_cores(const std::string & folder, const std::vector<int> & allowed) {
    std::vector<int> chosen;
    if (allowed.empty()) {
        return chosen;
    }
    for (const char * file : {"/cpu_capacity", "/cpufreq/cpuinfo_max_freq"}) {
        std::vector<int64_t> speed;
        for (int core : allowed) {
            speed.push_back(number_in(folder + "/cpu" + std::to_string(core) + file));
        }
        const int64_t fastest = *std::max_element(speed.begin(), speed.end());
        const int64_t slowest = *std::min_element(speed.begin(), speed.end());
        for (size_t i = 0; fastest > 0 && i < allowed.size(); i++) {
            if (speed[i] - slowest >= fastest - speed[i]) {  // the middle cores of three kinds are near the fastest
                chosen.push_back(allowed[i]);
            }
        }
        if (!chosen.empty()) {
            break;
        }
    }
    if (chosen.empty()) {
        chosen = allowed;
    }
    if (chosen.size() > MOST) {
        chosen.erase(chosen.begin(), chosen.end() - MOST);
    }
    return chosen;
}

std::vector<int> allowed_cores() {
    std::vector<int> cores;
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        for (int i = 0; i < CPU_SETSIZE; i++) {
            if (CPU_ISSET(i, &set)) {
                cores.push_back(i);
            }
        }
    }
    return cores.empty() ? std::vector<int>{0} : cores;
}

void keep_to(const std::vector<int> & cores) {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (int core : cores) {
        CPU_SET(core, &set);
    }
    sched_setaffinity(0, sizeof set, &set);  // a wish: what the system forbids is as slow as before
}

int64_t available_memory() {
    std::ifstream file("/proc/meminfo");
    for (std::string line; std::getline(file, line);) {
        long long kib = 0;
        if (sscanf(line.c_str(), "MemAvailable: %lld kB", &kib) == 1) {
            return (int64_t) kib * 1024;
        }
    }
    return -1;
}

int64_t resident_memory() {
    std::ifstream file("/proc/self/statm");
    int64_t size = 0, resident = 0;
    return file >> size >> resident ? resident * sysconf(_SC_PAGESIZE) : -1;
}

std::vector<std::string> compiled_features() {
    std::vector<std::string> features;
#if defined(__aarch64__)
    if (ggml_cpu_has_dotprod()) {
        features.push_back("dotprod");
    }
    if (ggml_cpu_has_matmul_int8()) {
        features.push_back("i8mm");
    }
#endif
    return features;
}

std::string missing_feature() {
#if defined(__aarch64__)
    const unsigned long DOTPROD = 1UL << 20, I8MM = 1UL << 13;  // HWCAP_ASIMDDP, HWCAP2_I8MM of asm/hwcap.h
    for (const std::string & name : compiled_features()) {
        if (!(name == "dotprod" ? getauxval(AT_HWCAP) & DOTPROD : getauxval(AT_HWCAP2) & I8MM)) {
            return name;
        }
    }
#endif
    return "";
}

static pid_t parent;

// The signal comes when the thread that started us ends, too; then the process is still there.
static void parent_ended(int) {
    if (getppid() != parent) {
        _exit(0);
    }
}

void end_with_parent() {
    parent = getppid();
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = parent_ended;
    action.sa_flags = SA_RESTART;
    sigaction(SIGUSR1, &action, nullptr);
    prctl(PR_SET_PDEATHSIG, SIGUSR1);
    if (getppid() != parent) {
        _exit(0);
    }
}
