#include "prompt.h"

#include "child.h"
#include "jinja/lexer.h"
#include "jinja/parser.h"
#include "jinja/runtime.h"
#include "json.h"

static const size_t LARGEST = 4 << 20;  // bytes of a template
static const size_t LONGEST = 8 << 20;  // bytes of a rendered text
static const size_t MOST = 4096;        // messages
static const int SECONDS = 10;          // of computing for one prompt; published templates take milliseconds

std::string metadata(const llama_model * model, const std::string & key, bool * there) {
    const int32_t length = llama_model_meta_val_str(model, key.c_str(), nullptr, 0);
    if (there) {
        *there = length >= 0;
    }
    if (length <= 0) {
        return "";
    }
    std::string value((size_t) length + 1, '\0');
    llama_model_meta_val_str(model, key.c_str(), &value[0], value.size());
    value.resize((size_t) length);
    return value;
}

json special_tokens(const llama_model * model) {
    bool there;
    const std::string written = metadata(model, "sampan.tokenizer.special_tokens", &there);
    if (there) {
        const json found = json::parse(written, nullptr, false);
        if (!found.is_object()) {
            throw Refusal("template", "sampan.tokenizer.special_tokens is no JSON object; convert the model again");
        }
        return found;
    }
    const llama_vocab * vocab = llama_model_get_vocab(model);
    json named = json::object();
    for (const auto & role : {std::make_pair("bos_token", llama_vocab_bos(vocab)), {"eos_token", llama_vocab_eos(vocab)}}) {
        if (role.second >= 0) {
            named[role.first] = llama_vocab_get_text(vocab, role.second);
        }
    }
    return named;
}

void check_conversation(const json & request) {
    const auto messages = request.find("messages");
    if (messages == request.end() || !messages->is_array() || messages->empty() || messages->size() > MOST) {
        throw Refusal("bad_request", "messages must be a list of 1 to 4096 messages");
    }
    for (const json & message : *messages) {
        if (!message.is_object() || !message.contains("role") || !message["role"].is_string()) {
            throw Refusal("bad_request", "a message must be an object with a role");
        }
    }
    const auto variables = request.find("variables");
    if (variables == request.end() || variables->is_null()) {
        return;
    }
    if (!variables->is_object() || variables->contains("messages") || variables->contains("tools")) {
        throw Refusal("bad_request", "variables must be an object without messages and tools");
    }
}

// As transformers hands them to a template: keys without a value are left out, reasoning goes by all its names.
static json plain(const json & messages) {
    json result = json::array();
    for (const json & message : messages) {
        json kept = json::object();
        for (const auto & item : message.items()) {
            if (!item.value().is_null()) {
                kept[item.key()] = item.value();
            }
        }
        for (const char * name : {"reasoning_content", "thinking", "reasoning"}) {
            if (kept.contains(name)) {
                const json reasoning = kept[name];
                kept["reasoning_content"] = reasoning;
                if (!kept.contains("thinking")) {
                    kept["thinking"] = reasoning;
                }
                break;
            }
        }
        result.push_back(kept);
    }
    return result;
}

static std::string render(const std::string & source, const json & values) {
    jinja::lexer lexer;
    const jinja::program program = jinja::parse_from_tokens(lexer.tokenize(source));
    jinja::context context(source);
    jinja::global_from_json(context, common_json::parse(values.dump()), false);
    jinja::runtime runtime(context);
    return jinja::runtime::gather_string_parts(runtime.execute(program))->as_string().str();
}

// A template's error tells where in the template, over several lines; the first one says what.
static std::string first_line(const std::string & text) {
    const size_t start = text.find_first_not_of("\r\n ");
    const std::string line = start == std::string::npos ? "no reason given" : text.substr(start);
    return line.substr(0, std::min<size_t>(line.find_first_of("\r\n"), 300));
}

static json prompt_in_child(const llama_model * model, const std::string & source, const json & values) {
    std::string text;
    try {
        text = render(source, values);
    } catch (const std::exception & e) {
        throw Refusal("template", "the model's chat template refuses: " + first_line(e.what()));
    }
    if (text.size() > LONGEST) {
        throw Refusal("template", "the model's chat template writes more than 8 MB");
    }
    std::vector<llama_token> ids(text.size() + 2);
    const int32_t n = llama_tokenize(llama_model_get_vocab(model), text.data(), (int32_t) text.size(), ids.data(),
                                     (int32_t) ids.size(), false, true);
    if (n < 0) {
        throw Refusal("template", "the prompt cannot be cut into tokens");
    }
    ids.resize((size_t) n);
    return {{"text", text}, {"ids", ids}};
}

Prompt make_prompt(const llama_model * model, const json & request) {
    const std::string source = metadata(model, "tokenizer.chat_template");
    if (source.empty() || source.size() > LARGEST) {
        throw Refusal("template", source.empty() ? "the model's file has no chat template, so it is not made for chats"
                                                 : "the model's chat template has more than 4 MB");
    }
    json values = {{"tools", nullptr}, {"documents", nullptr}, {"add_generation_prompt", true}};
    values.update(special_tokens(model));
    if (request.contains("variables") && request["variables"].is_object()) {
        values.update(request["variables"]);
    }
    values["messages"] = plain(request["messages"]);
    const json made = in_child("template", "the model's chat template", SECONDS, [&] {
        return prompt_in_child(model, source, values);
    });
    return {made["text"].get<std::string>(), made["ids"].get<std::vector<llama_token>>()};
}
