// One model and its context: what a file needs, loading, evaluating with a reused prefix, choosing tokens.
#pragma once
#include "wire.h"

#include <atomic>
#include <llama.h>
#include <memory>
#include <set>
#include <vector>

struct Need {
    int64_t model = 0, context = 0, compute = 0;  // bytes
    int64_t tokens = 0, trained = 0, longest = 0;  // of the context: granted, what the file says, what yarn reaches
    bool spaced = false;  // the file says itself where its tokenizer puts spaces, so llama.cpp puts none
};

struct Sampling {
    double temperature, top_p, repetition_penalty;
    int64_t top_k, seed;
};

class Model {
  public:
    // What `path` needs for `context` tokens (0: its own, at most 4096), by llama.cpp's own sums; no weight is read.
    // A process of its own does it. Throws Refusal `load`.
    static Need need(const std::string & path, int64_t context);

    // `stopped` is asked while weights are read and while tokens are evaluated. Throws Refusal `load` or `memory`.
    Model(const std::string & path, const Need & need, int threads, int64_t id, std::atomic<bool> & stopped);

    const llama_model * get() const { return model.get(); }
    std::string name() const;
    bool wants_nfc() const;  // its tokenizer was made for text in Unicode NFC, which llama.cpp leaves to its caller

    // What the request says, what the file says, greedy: the first that there is.
    Sampling sampling(const json & request) const;

    // Keeps the part of the cache that `ids` begin with; returns how many of them need no evaluation.
    size_t rewind(const std::vector<llama_token> & ids);

    // Appends tokens to the cache. False where `stopped` cut it short. Throws Refusal `internal`.
    bool evaluate(const std::vector<llama_token> & ids, size_t from);

    bool is_end(llama_token token) const;
    std::string piece(llama_token token) const;

    using Sampler = std::unique_ptr<llama_sampler, decltype(&llama_sampler_free)>;
    Sampler sampler(const Sampling & sampling, const std::vector<llama_token> & prompt) const;
    llama_token choose(Sampler & sampler) const;  // by the last evaluated token's logits

    const Need sizes;

  private:
    std::unique_ptr<llama_model, decltype(&llama_model_free)> model;
    std::unique_ptr<llama_context, decltype(&llama_free)> context;
    const llama_vocab * vocab;
    std::vector<llama_token> cached;
    std::set<llama_token> ends, text_tokens;
    bool ends_written;
    std::atomic<bool> & stop;
};
