#include "model.h"

#include "child.h"
#include "llama_log.h"
#include "prompt.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstring>
#include <fstream>
#include <llama-ext.h>
#include <sys/stat.h>

static const int64_t DEFAULT_CONTEXT = 4096;
static const int BATCH = 512;          // tokens that are evaluated at once
static const int TRIAL_SECONDS = 60;   // of computing for a header; the largest vocabularies take about one
static const double PROGRESS = 0.02;   // least step of loading that is told

static void check_file(const std::string & path) {
    struct stat facts;
    if (stat(path.c_str(), &facts) != 0) {
        throw Refusal("load", "the model's file cannot be found: " + std::string(strerror(errno)));
    }
    char magic[4] = {0};
    std::ifstream file(path, std::ios::binary);
    if (!S_ISREG(facts.st_mode) || !file.read(magic, sizeof magic) || memcmp(magic, "GGUF", sizeof magic) != 0) {
        throw Refusal("load", file.is_open() ? "the file is no GGUF model" : "the model's file cannot be opened");
    }
}

static std::string rope_scaling(const llama_model * model, const char * key) {
    return metadata(model, metadata(model, "general.architecture") + ".rope.scaling." + key);
}

// The positions that YaRN reaches: a file's context_length may count its factor or not.
static int64_t stretched(const llama_model * model) {
    if (rope_scaling(model, "type") != "yarn") {
        return 0;
    }
    const double reach = atof(rope_scaling(model, "original_context_length").c_str()) *
                         atof(rope_scaling(model, "factor").c_str());
    return reach > 0 && reach < 1e9 ? (int64_t) reach : 0;
}

static llama_context_params context_params(const llama_model * model, int64_t tokens, int threads) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = (uint32_t) tokens;
    params.n_batch = params.n_ubatch = BATCH;
    params.n_threads = params.n_threads_batch = threads;
    // llama.cpp's graphs do not read these keys from the file
    const std::string fast = rope_scaling(model, "yarn_beta_fast"), slow = rope_scaling(model, "yarn_beta_slow");
    params.yarn_beta_fast = fast.empty() ? params.yarn_beta_fast : (float) atof(fast.c_str());
    params.yarn_beta_slow = slow.empty() ? params.yarn_beta_slow : (float) atof(slow.c_str());
    return params;
}

static json need_in_child(const std::string & path, int64_t wanted) {
    llama_model_params params = llama_model_default_params();
    params.no_alloc = true;
    params.load_mode = LLAMA_LOAD_MODE_NONE;
    llama_model * model = llama_model_load_from_file(path.c_str(), params);
    if (!model) {
        throw Refusal("load", "llama.cpp refuses the file: " + errors());
    }
    const int64_t trained = llama_model_n_ctx_train(model), longest = std::max(trained, stretched(model));
    const int64_t tokens = std::min(wanted > 0 ? wanted : std::min(trained, DEFAULT_CONTEXT), longest);
    if (tokens <= 0) {
        throw Refusal("load", "the file says that the model was made for no tokens");
    }
    if (!llama_model_has_decoder(model) || llama_model_has_encoder(model) || llama_model_is_diffusion(model)) {
        throw Refusal("load", "the model does not write text token by token");
    }
    const llama_context * context = llama_init_from_model(model, context_params(model, tokens, 1));
    if (!context) {
        throw Refusal("load", "llama.cpp refuses a context of " + std::to_string(tokens) + " tokens: " + errors());
    }
    int64_t sums[3] = {0, 0, 0};
    for (const auto & part : llama_get_memory_breakdown(context)) {
        sums[0] += (int64_t) part.second.model;
        sums[1] += (int64_t) part.second.context;
        sums[2] += (int64_t) part.second.compute;
    }
    return {{"model", sums[0]}, {"context", sums[1]}, {"compute", sums[2]},
            {"tokens", tokens}, {"trained", trained}, {"longest", longest}, {"spaced", !spaces(model).empty()}};
}

Need Model::need(const std::string & path, int64_t context) {
    check_file(path);
    forget_errors();
    const json said = in_child("load", "reading the file's header", TRIAL_SECONDS, [&] {
        return need_in_child(path, context);
    });
    Need need;
    need.model = said["model"].get<int64_t>();
    need.context = said["context"].get<int64_t>();
    need.compute = said["compute"].get<int64_t>();
    need.tokens = said["tokens"].get<int64_t>();
    need.trained = said["trained"].get<int64_t>();
    need.longest = said["longest"].get<int64_t>();
    need.spaced = said["spaced"].get<bool>();
    return need;
}

namespace {
struct Progress {
    int64_t id;
    float told;
    std::atomic<bool> & stopped;
};
}

static bool tell(float value, void * data) {
    Progress & progress = *(Progress *) data;
    if (value >= progress.told + PROGRESS || value >= 1) {
        progress.told = value;
        emit({{"event", "progress"}, {"id", progress.id}, {"value", value}});
    }
    return !progress.stopped;
}

// All whole numbers in a text, as both our converter's lists and llama.cpp's print of an array have them.
static std::set<llama_token> numbers(const std::string & text) {
    std::set<llama_token> found;
    for (size_t at = 0; at < text.size();) {
        size_t end = at;
        while (end < text.size() && isdigit((unsigned char) text[end])) {
            end++;
        }
        if (end > at && end - at < 10) {
            found.insert((llama_token) atoi(text.c_str() + at));
        }
        at = std::max(end, at + 1);
    }
    return found;
}

Model::Model(const std::string & path, const Need & need, int threads, int64_t id, std::atomic<bool> & stopped)
    : sizes(need), model(nullptr, llama_model_free), context(nullptr, llama_free), stop(stopped) {
    forget_errors();
    Progress progress = {id, 0, stopped};
    llama_model_params params = llama_model_default_params();
    params.progress_callback = tell;
    params.progress_callback_user_data = &progress;
    llama_model_kv_override overrides[2] = {};  // the last one is empty
    if (need.spaced) {
        overrides[0].tag = LLAMA_KV_OVERRIDE_TYPE_BOOL;
        strcpy(overrides[0].key, "tokenizer.ggml.add_space_prefix");
        params.kv_overrides = overrides;
    }
    model.reset(llama_model_load_from_file(path.c_str(), params));
    if (!model) {
        throw Refusal("load", stopped ? "stopped" : "llama.cpp cannot load the file: " + errors());
    }
    context.reset(llama_init_from_model(model.get(), context_params(model.get(), need.tokens, threads)));
    if (!context) {
        throw Refusal("memory", "llama.cpp cannot make a context of " + std::to_string(need.tokens) + " tokens: " + errors());
    }
    llama_set_abort_callback(context.get(), [](void * flag) { return ((std::atomic<bool> *) flag)->load(); }, &stop);
    vocab = llama_model_get_vocab(model.get());
    ends = numbers(metadata(model.get(), "sampan.tokenizer.end_tokens", &ends_written));
    text_tokens = numbers(metadata(model.get(), "sampan.tokenizer.text_tokens"));
}

std::string Model::name() const {
    return metadata(model.get(), "general.name");
}

bool Model::wants_nfc() const {
    bool there;
    const std::string says = metadata(model.get(), "sampan.tokenizer.nfc", &there);
    const std::string pre = metadata(model.get(), "tokenizer.ggml.pre");
    return there ? says == "true" : pre == "qwen2" || pre == "qwen35";
}

Sampling Model::sampling(const json & request) const {
    const auto file = [&](const char * key, double low, double high, double otherwise) {
        const double value = atof(metadata(model.get(), std::string("general.sampling.") + key).c_str());
        return value > low && value <= high ? value : otherwise;
    };
    return {
        real(request, "temperature", 0, 100, file("temp", 0, 100, 0)),
        real(request, "top_p", 0, 1, file("top_p", 0, 1, 1)),
        real(request, "repetition_penalty", 0.01, 100, file("penalty_repeat", 0, 100, 1)),
        whole(request, "top_k", 0, 1 << 24, (int64_t) file("top_k", 0, 1 << 24, 0)),
        whole(request, "seed", 0, UINT32_MAX, 0),
    };
}

size_t Model::rewind(const std::vector<llama_token> & ids) {
    size_t shared = 0;
    while (shared < ids.size() && shared < cached.size() && ids[shared] == cached[shared]) {
        shared++;
    }
    llama_memory_t memory = llama_get_memory(context.get());
    if (!llama_memory_seq_rm(memory, 0, (llama_pos) shared, -1)) {  // a state that cannot be cut back
        llama_memory_clear(memory, true);
        shared = 0;
    }
    cached.resize(shared);
    return shared;
}

bool Model::evaluate(const std::vector<llama_token> & ids, size_t from) {
    while (from < ids.size()) {
        std::vector<llama_token> part(ids.begin() + (long) from, ids.begin() + (long) std::min(ids.size(), from + BATCH));
        forget_errors();
        const int code = stop ? 2 : llama_decode(context.get(), llama_batch_get_one(part.data(), (int32_t) part.size()));
        if (code != 0) {
            const std::vector<llama_token> known = cached;
            rewind(known);
            if (code == 2) {
                return false;
            }
            throw Refusal("internal", "llama.cpp cannot evaluate (code " + std::to_string(code) + "): " + errors());
        }
        cached.insert(cached.end(), part.begin(), part.end());
        from += part.size();
    }
    return true;
}

bool Model::is_end(llama_token token) const {
    return ends_written ? ends.count(token) > 0 : llama_vocab_is_eog(vocab, token);
}

std::string Model::piece(llama_token token) const {
    std::string bytes(64, '\0');
    for (;;) {
        const int32_t n = llama_token_to_piece(vocab, token, &bytes[0], (int32_t) bytes.size(), 0, text_tokens.count(token) > 0);
        bytes.resize((size_t) std::abs(n));
        if (n >= 0) {
            return bytes;
        }
    }
}

Model::Sampler Model::sampler(const Sampling & s, const std::vector<llama_token> & prompt) const {
    Sampler chain(llama_sampler_chain_init(llama_sampler_chain_default_params()), llama_sampler_free);
    const auto add = [&](llama_sampler * step) { llama_sampler_chain_add(chain.get(), step); };
    if (s.repetition_penalty != 1) {
        const auto window = (int32_t) llama_n_ctx(context.get());
        add(llama_sampler_init_penalties(llama_vocab_n_tokens(vocab), window, (float) s.repetition_penalty, 0, 0));
    }
    if (s.temperature <= 0) {
        add(llama_sampler_init_greedy());
    } else {
        add(llama_sampler_init_temp((float) s.temperature));
        add(llama_sampler_init_top_k(s.top_k > 0 ? (int32_t) s.top_k : llama_vocab_n_tokens(vocab)));
        add(llama_sampler_init_top_p((float) s.top_p, 1));
        add(llama_sampler_init_dist((uint32_t) s.seed));
    }
    for (llama_token token : prompt) {
        llama_sampler_accept(chain.get(), token);
    }
    return chain;
}

llama_token Model::choose(Sampler & chain) const {
    const float * logits = llama_get_logits_ith(context.get(), -1);
    for (int i = 0; i < llama_vocab_n_tokens(vocab); i++) {
        if (std::isnan(logits[i]) || logits[i] == INFINITY) {
            throw Refusal("internal", "the model computed no numbers: its weights or its 16-bit cache overflow");
        }
    }
    return llama_sampler_sample(chain.get(), context.get(), -1);
}
