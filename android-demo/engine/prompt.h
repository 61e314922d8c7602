// A conversation as the model's own template writes it, and as tokens.
#pragma once
#include "wire.h"

#include <llama.h>

// The value of a key of the model's file as text; empty where there is none.
std::string metadata(const llama_model * model, const std::string & key, bool * there = nullptr);

// The names of special tokens that a template can ask for, such as bos_token, with their texts.
json special_tokens(const llama_model * model);

// Where the file says that its tokenizer puts spaces, if it does: "missing" or "first". Throws Refusal `load`.
std::string spaces(const llama_model * model);

// Checks `messages` and `variables` of a request. Throws Refusal.
void check_conversation(const json & request);

struct Prompt {
    std::string text;
    std::vector<llama_token> ids;
};

// Both are made in a process of its own: the template is a program of a stranger's. Throws Refusal `template`.
Prompt make_prompt(const llama_model * model, const json & request);
