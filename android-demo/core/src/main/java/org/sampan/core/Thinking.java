package org.sampan.core;

/** A model's text, cut into what it thought and what it answers. */
public final class Thinking {
    /** Opening and closing tags: Qwen, Kimi K2 and most others; Kimi-VL. */
    private static final String[][] TAGS = {{"<think>", "</think>"}, {"◁think▷", "◁/think▷"}};

    public final String thought;
    public final String answer;
    /** Whether the thought has not ended yet. */
    public final boolean open;

    private Thinking(String thought, String answer, boolean open) {
        this.thought = thought.trim();
        this.answer = answer.trim();
        this.open = open;
    }

    /**
     * Of the whole text so far. Templates that open the thought in the prompt leave only the closing tag in the text.
     * While `streaming`, an end that may become a tag is held back.
     */
    public static Thinking of(String text, boolean streaming) {
        for (String[] tag : TAGS) {
            int start = text.startsWith(tag[0]) || text.trim().startsWith(tag[0]) ? text.indexOf(tag[0]) + tag[0].length() : 0;
            int end = text.indexOf(tag[1], start);
            if (end >= 0) {
                return new Thinking(text.substring(start, end), text.substring(end + tag[1].length()), false);
            }
            if (start > 0) {
                return new Thinking(held(text, start, tag[1], streaming), "", streaming);
            }
            if (streaming && !text.trim().isEmpty() && tag[0].startsWith(text.trim())) {
                return new Thinking("", "", true);
            }
        }
        String answer = text;
        for (String[] tag : TAGS) {
            answer = held(answer, 0, tag[1], streaming);
        }
        return new Thinking("", answer, false);
    }

    private static String held(String text, int start, String tag, boolean streaming) {
        for (int n = tag.length() - 1; streaming && n > 0; n--) {
            if (text.length() - n >= start && text.endsWith(tag.substring(0, n))) {
                return text.substring(start, text.length() - n);
            }
        }
        return text.substring(start);
    }
}
