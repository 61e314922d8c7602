// The engine: requests on standard input, events on standard output, one line of JSON each (../PROTOCOL.md).
// A thread reads; the main thread, whose stack is the largest, does one job at a time.
#include "llama_log.h"
#include "machine.h"
#include "model.h"
#include "prompt.h"
#include "utf8.h"

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <unistd.h>

static const char * const CPUS = "/sys/devices/system/cpu";
static const int64_t PROGRAM = 64 << 20;  // bytes beside model, cache and graph: vocabulary, text, the C++ library

namespace {
struct State {
    std::mutex turn;
    std::condition_variable changed;
    json job;  // null: none
    int64_t running = -1;
    std::atomic<bool> stopped{false};
    std::atomic<int64_t> model_bytes{0}, cache_bytes{0};
};
State state;
std::unique_ptr<Model> model;
}

static int64_t now_ms() {
    using namespace std::chrono;
    return duration_cast<milliseconds>(steady_clock::now().time_since_epoch()).count();
}

static json load(const json & request, int64_t id) {
    const int64_t start = now_ms();
    const std::string path = text_of(request, "path");
    const int64_t context = whole(request, "context", 0, 1 << 24, 0);
    int64_t threads = whole(request, "threads", 0, 64, 0);
    const Need need = Model::need(path, context);
    const int64_t bytes = need.model + need.context + need.compute + PROGRAM;
    const int64_t held = model ? resident_memory() : 0, available = available_memory();
    if (available >= 0 && bytes > available + held) {
        throw Refusal("memory", "the model needs " + std::to_string(bytes >> 20) + " MiB with a context of " +
                      std::to_string(need.tokens) + " tokens, and " + std::to_string((available + held) >> 20) +
                      " MiB are free; take a smaller model or context",
                      {{"need_bytes", bytes}, {"available_bytes", available + held}});
    }
    model.reset();
    state.model_bytes = state.cache_bytes = 0;
    const std::vector<int> cores = big_cores(CPUS, allowed_cores());
    if (threads == 0) {
        keep_to(cores);
        threads = (int64_t) cores.size();
    }
    model.reset(new Model(path, need, (int) threads, id, state.stopped));
    state.model_bytes = need.model;
    state.cache_bytes = need.context;
    const std::string name = model->name();
    return {{"event", "loaded"}, {"id", id}, {"name", name.empty() ? path.substr(path.rfind('/') + 1) : name},
            {"context", need.tokens}, {"trained_context", need.trained}, {"bytes", need.model},
            {"context_bytes", need.context}, {"compute_bytes", need.compute}, {"nfc", model->wants_nfc()},
            {"threads", threads}, {"cores", cores}, {"load_ms", now_ms() - start}};
}

static Prompt prompt_of(const json & request) {
    check_conversation(request);
    if (!model) {
        throw Refusal("no_model", "no model is loaded");
    }
    return make_prompt(model->get(), request);
}

static json render(const json & request, int64_t id) {
    const Prompt prompt = prompt_of(request);
    return {{"event", "ids"}, {"id", id}, {"ids", prompt.ids}, {"text", prompt.text}};
}

static json chat(const json & request, int64_t id) {
    const int64_t most = whole(request, "max_tokens", 0, 1 << 24, 512);
    std::vector<llama_token> ids = prompt_of(request).ids;
    const Sampling sampling = model->sampling(request);
    const auto room = model->sizes.tokens - (int64_t) ids.size();
    if (ids.empty() || room < 0) {
        throw Refusal("too_long", ids.empty() ? "the chat template wrote nothing"
                      : "the conversation has " + std::to_string(ids.size()) + " tokens, and the context " +
                        std::to_string(model->sizes.tokens) + "; begin a new one");
    }
    const size_t prompt_tokens = ids.size();
    const size_t cached = model->rewind({ids.begin(), ids.end() - 1});
    emit({{"event", "prompt"}, {"id", id}, {"tokens", prompt_tokens}, {"cached", cached}});
    const int64_t start = now_ms();
    Model::Sampler sampler = model->sampler(sampling, ids);
    bool going = model->evaluate(ids, cached);
    const int64_t prefilled = now_ms();
    Utf8 text;
    int64_t written = 0;
    std::string reason = most <= room ? "length" : "context";
    const auto say = [&](const std::string & piece) {
        if (!piece.empty()) {
            emit({{"event", "text"}, {"id", id}, {"text", piece}});
        }
    };
    while (going && written < std::min(most, room)) {
        const llama_token token = model->choose(sampler);
        if (model->is_end(token)) {
            reason = "stop";
            break;
        }
        ids.push_back(token);
        written++;
        say(text.add(model->piece(token)));
        // the last one's logits are not asked for
        going = !state.stopped && (written == std::min(most, room) || model->evaluate(ids, ids.size() - 1));
    }
    say(text.finish());
    return {{"event", "done"}, {"id", id}, {"reason", going ? reason : "stopped"}, {"tokens", written},
            {"prompt_tokens", prompt_tokens}, {"cached", cached}, {"prefill_ms", prefilled - start},
            {"decode_ms", now_ms() - prefilled}};
}

// The last event of a job.
static json work(const json & job, int64_t id) {
    const std::string op = job["op"];
    try {
        return op == "load" ? load(job, id) : op == "chat" ? chat(job, id) : render(job, id);
    } catch (const Refusal & e) {
        return error_event(id, e);
    } catch (const std::bad_alloc &) {
        return error_event(id, Refusal("memory", "there is not enough memory"));
    } catch (const std::exception & e) {
        return error_event(id, Refusal("internal", e.what()));
    }
}

// What is answered at once, whatever runs. Throws Refusal.
static void take(const json & request, int64_t id) {
    const std::string op = text_of(request, "op");
    if (op == "quit") {
        _exit(0);
    } else if (op == "stats") {
        emit({{"event", "stats"}, {"id", id}, {"rss_bytes", resident_memory()},
              {"model_bytes", state.model_bytes.load()}, {"cache_bytes", state.cache_bytes.load()}});
    } else if (op == "stop") {
        const int64_t target = whole(request, "target", 0, INT64_MAX, -1);
        const std::lock_guard<std::mutex> lock(state.turn);
        state.stopped = state.stopped || (target >= 0 && target == state.running);
    } else if (op == "load" || op == "chat" || op == "render") {
        const std::lock_guard<std::mutex> lock(state.turn);
        if (state.running >= 0) {
            throw Refusal("bad_request", "request " + std::to_string(state.running) + " still runs; stop it or wait");
        }
        state.job = request;
        state.running = id;
        state.stopped = false;
        state.changed.notify_one();
    } else {
        throw Refusal("bad_request", "op must be load, chat, render, stop, stats or quit");
    }
}

static void read_requests() {
    std::string line;
    for (Line read; (read = read_line(line)) != Line::end;) {
        int64_t id = 0;
        try {
            if (read == Line::too_long) {
                throw Refusal("bad_request", "a line has at most 1 MiB");
            }
            const json request = parse_request(line);
            if ((id = whole(request, "id", 0, INT64_MAX, -1)) < 0) {
                id = 0;
                throw Refusal("bad_request", "id must be an integer of 0 or more");
            }
            take(request, id);
        } catch (const Refusal & e) {
            emit(error_event(id, e));
        } catch (const std::exception & e) {
            emit(error_event(id, Refusal("internal", e.what())));
        }
    }
    _exit(0);
}

int main(int count, char ** arguments) {
    if (count == 3 && strcmp(arguments[1], "--cores") == 0) {  // which cores would be taken on that machine
        std::vector<int> all;
        for (int i = 0; access((std::string(arguments[2]) + "/cpu" + std::to_string(i)).c_str(), F_OK) == 0; i++) {
            all.push_back(i);
        }
        puts(json(big_cores(arguments[2], all)).dump().c_str());
        return 0;
    }
    end_with_parent();
    const std::string missing = missing_feature();
    if (!missing.empty()) {
        emit(error_event(0, Refusal("cpu", "this program needs " + missing + ", which the processor lacks")));
        return 3;
    }
    setenv("GGML_NO_BACKTRACE", "1", 1);  // which a debugger would print on standard output
    watch_log();
    llama_backend_init();
    emit({{"event", "ready"}, {"id", 0}, {"protocol", 1}, {"engine", ENGINE_VERSION}, {"features", compiled_features()}});
    std::thread(read_requests).detach();
    for (;;) {
        std::unique_lock<std::mutex> lock(state.turn);
        state.changed.wait(lock, [] { return !state.job.is_null(); });
        const json job = std::move(state.job);
        const int64_t id = state.running;
        state.job = nullptr;
        lock.unlock();
        const json last = work(job, id);
        lock.lock();
        state.running = -1;  // first: who reads the event may ask for more at once
        lock.unlock();
        emit(last);
    }
}
