#include "child.h"

#include <cerrno>
#include <csignal>
#include <cstring>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static const size_t LARGEST = 64 << 20;  // bytes of an answer

static json answer_of(const std::function<json()> & work) {
    try {
        return {{"answer", work()}};
    } catch (const Refusal & e) {
        return {{"code", e.code}, {"message", e.what()}};
    } catch (const std::bad_alloc &) {
        return {{"failed", "it takes more memory than there is"}};
    } catch (const std::exception & e) {
        return {{"failed", e.what()}};
    }
}

static void write_all(int pipe, const std::string & bytes) {
    for (size_t at = 0; at < bytes.size();) {
        const ssize_t n = write(pipe, bytes.data() + at, bytes.size() - at);
        if (n < 0 && errno != EINTR) {
            return;
        }
        at += n > 0 ? (size_t) n : 0;
    }
}

json in_child(const char * code, const std::string & what, int seconds, const std::function<json()> & work) {
    int ends[2];
    if (pipe(ends) != 0) {
        throw Refusal("internal", std::string("no pipe for ") + what + ": " + strerror(errno));
    }
    const pid_t child = fork();
    if (child < 0) {
        close(ends[0]);
        close(ends[1]);
        throw Refusal("internal", std::string("no process for ") + what + ": " + strerror(errno));
    }
    if (child == 0) {
        close(ends[0]);
        close(STDIN_FILENO);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (int signal : {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL}) {
            std::signal(signal, SIG_DFL);
        }
        const rlimit time = {(rlim_t) seconds, (rlim_t) seconds}, none = {0, 0};
        setrlimit(RLIMIT_CPU, &time);
        setrlimit(RLIMIT_CORE, &none);
        write_all(ends[1], answer_of(work).dump(-1, ' ', false, json::error_handler_t::replace));
        _exit(0);
    }
    close(ends[1]);
    std::string said;
    char buffer[65536];
    while (said.size() <= LARGEST) {
        const ssize_t n = read(ends[0], buffer, sizeof buffer);
        if (n == 0 || (n < 0 && errno != EINTR)) {
            break;
        }
        said.append(buffer, n > 0 ? (size_t) n : 0);
    }
    close(ends[0]);
    int status = 0;
    if (said.size() > LARGEST) {
        kill(child, SIGKILL);
    }
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    if (said.size() > LARGEST) {
        throw Refusal(code, what + " says more than can be true");
    }
    if (WIFSIGNALED(status)) {
        const int signal = WTERMSIG(status);
        throw Refusal(code, what + (signal == SIGKILL || signal == SIGXCPU ? " takes too long or too much memory"
                                                                           : " ends by signal " + std::to_string(signal)));
    }
    const json answer = json::parse(said, nullptr, false);
    if (answer.is_object() && answer.contains("answer")) {
        return answer["answer"];
    }
    if (answer.is_object() && answer.contains("code")) {
        throw Refusal(answer["code"].get<std::string>(), answer["message"].get<std::string>());
    }
    const std::string reason = answer.is_object() ? answer.value("failed", "") : "no reason given";
    throw Refusal(code, what + " failed: " + reason);
}
