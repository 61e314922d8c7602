#include "prompt.h"

#include "child.h"
#include "jinja/lexer.h"
#include "jinja/parser.h"
#include "jinja/runtime.h"
#include "json.h"

#include <algorithm>
#include <sstream>

static const size_t LARGEST = 4 << 20;  // bytes of a template
static const size_t LONGEST = 8 << 20;  // bytes of a rendered text
static const size_t MOST = 4096;        // messages
static const std::vector<std::string> KEYS = {"role", "content", "reasoning_content"};
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

std::string spaces(const llama_model * model) {
    const std::string way = metadata(model, "sampan.tokenizer.prefix");
    if (!way.empty() && way != "missing" && way != "first") {
        throw Refusal("load", "sampan.tokenizer.prefix must be missing or first; convert the model again");
    }
    return way;
}

// A space in front of each part between special tokens ("missing"), or of the whole text ("first"), that has none.
static std::string with_spaces(const llama_vocab * vocab, const std::string & text, const std::string & way) {
    const int apart = LLAMA_TOKEN_ATTR_UNKNOWN | LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_USER_DEFINED;
    std::vector<std::string> special;
    for (llama_token id = 0; !way.empty() && id < llama_vocab_n_tokens(vocab); id++) {
        if ((llama_vocab_get_attr(vocab, id) & apart) && *llama_vocab_get_text(vocab, id)) {
            special.push_back(llama_vocab_get_text(vocab, id));
        }
    }
    std::stable_sort(special.begin(), special.end(), [](const auto & a, const auto & b) { return a.size() > b.size(); });
    std::string result;
    bool begins = !way.empty();
    for (size_t at = 0; at < text.size();) {
        const auto starts = [&](const std::string & word) { return text.compare(at, word.size(), word) == 0; };
        const auto found = std::find_if(special.begin(), special.end(), starts);
        const bool plain = found == special.end();
        if (plain && begins && !starts(" ") && !starts("▁")) {
            result += ' ';
        }
        begins = !plain && way == "missing";
        result.append(text, at, plain ? 1 : found->size());
        at += plain ? 1 : found->size();
    }
    return result;
}

void check_conversation(const json & request) {
    const auto messages = request.find("messages");
    if (messages == request.end() || !messages->is_array() || messages->empty() || messages->size() > MOST) {
        throw Refusal("bad_request", "messages must be a list of 1 to 4096 messages");
    }
    for (const json & message : *messages) {
        if (!message.is_object() || !message.contains("role")) {
            throw Refusal("bad_request", "a message must be an object with a role");
        }
        for (const auto & item : message.items()) {
            if (std::find(KEYS.begin(), KEYS.end(), item.key()) == KEYS.end() || !item.value().is_string()) {
                throw Refusal("bad_request", "a message has the texts role, content and reasoning_content alone");
            }
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

// As transformers hands them to a template: reasoning goes by both its names.
static json plain(const json & messages) {
    json result = messages;
    for (json & message : result) {
        if (message.contains("reasoning_content")) {
            message["thinking"] = message["reasoning_content"];
        }
    }
    return result;
}

// transformers gives a generation block a scope of its own, and llama.cpp's renderer does not: a variable that is set
// in one would keep its value behind it.
static bool sets_in_generation(const std::string & source) {
    bool inside = false;
    for (size_t at = 0; (at = source.find("{%", at)) != std::string::npos; at += 2) {
        const size_t word = source.find_first_not_of("-+ \t\r\n", at + 2);
        const std::string tag = word == std::string::npos ? "" : source.substr(word, 13);
        inside = tag.compare(0, 10, "generation") == 0 || (inside && tag != "endgeneration");
        if (inside && tag.compare(0, 4, "set ") == 0) {
            return true;
        }
    }
    return false;
}

static std::string render(const std::string & source, const json & values) {
    jinja::lexer lexer;
    const jinja::program program = jinja::parse_from_tokens(lexer.tokenize(source));
    jinja::context context(source);
    jinja::global_from_json(context, common_json::parse(values.dump()), false);
    jinja::runtime runtime(context);
    return jinja::runtime::gather_string_parts(runtime.execute(program))->as_string().str();
}

// What a template's error says, without the lines that show where.
static std::string first_line(const std::string & text) {
    std::istringstream lines(text);
    std::string reason = "no reason given";
    for (std::string line; std::getline(lines, line);) {
        const size_t at = line.find("Error: ");
        if (at != std::string::npos) {
            return line.substr(at, 300);
        }
        if (reason == "no reason given" && line.find_first_not_of("- ") != std::string::npos) {
            reason = line.substr(0, 300);
        }
    }
    return reason;
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
    const llama_vocab * vocab = llama_model_get_vocab(model);
    const std::string cut = with_spaces(vocab, text, spaces(model));
    std::vector<llama_token> ids(2 * cut.size() + 2);  // llama.cpp may put spaces in front of parts
    const int32_t n = llama_tokenize(vocab, cut.data(), (int32_t) cut.size(), ids.data(), (int32_t) ids.size(), false, true);
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
    if (sets_in_generation(source)) {
        throw Refusal("template", "the model's chat template sets a variable in a generation block, which is not rendered here");
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
