package org.sampan.core;

import java.util.ArrayList;
import java.util.List;

/** The little of Markdown that models write most: headings, bullets, bold, code. All other text stays as it is. */
public final class Markup {
    public enum Kind { BOLD, HEADING, CODE, BLOCK }

    /** A piece of `text` that looks different: characters `start` to `end`. */
    public static final class Run {
        public final Kind kind;
        public final int start;
        public final int end;

        Run(Kind kind, int start, int end) {
            this.kind = kind;
            this.start = start;
            this.end = end;
        }
    }

    public final String text;
    public final List<Run> runs;

    private Markup(String text, List<Run> runs) {
        this.text = text;
        this.runs = runs;
    }

    /** A fence that is not closed yet, in an answer that is still being written, reaches to the end. */
    public static Markup of(String markdown) {
        StringBuilder out = new StringBuilder();
        List<Run> runs = new ArrayList<>();
        String fence = null;
        int block = 0;
        for (String line : markdown.split("\n", -1)) {
            String bare = line.trim();
            if (fence != null && bare.startsWith(fence) && bare.replace(fence.substring(0, 1), "").isEmpty()) {
                runs.add(new Run(Kind.BLOCK, block, out.length()));
                fence = null;
            } else if (fence != null) {
                out.append(line).append('\n');
            } else if (bare.startsWith("```") || bare.startsWith("~~~")) {
                fence = bare.substring(0, 3);
                block = out.length();
            } else {
                prose(line, out, runs);
                out.append('\n');
            }
        }
        if (fence != null) {
            runs.add(new Run(Kind.BLOCK, block, out.length()));
        }
        if (out.length() > 0 && out.charAt(out.length() - 1) == '\n') {
            out.setLength(out.length() - 1);
        }
        List<Run> kept = new ArrayList<>();
        for (Run run : runs) {
            if (run.start < Math.min(run.end, out.length())) {
                kept.add(new Run(run.kind, run.start, Math.min(run.end, out.length())));
            }
        }
        return new Markup(out.toString(), kept);
    }

    private static void prose(String line, StringBuilder out, List<Run> runs) {
        int indent = 0;
        while (indent < line.length() && line.charAt(indent) == ' ') {
            indent++;
        }
        String rest = line.substring(indent);
        int level = 0;
        while (level < rest.length() && rest.charAt(level) == '#') {
            level++;
        }
        if (level >= 1 && level <= 6 && rest.startsWith(" ", level)) {
            int start = out.length();
            inline(rest.substring(level).trim(), out, runs);
            runs.add(new Run(Kind.HEADING, start, out.length()));
        } else {
            out.append(line, 0, indent);
            boolean bullet = rest.startsWith("- ") || rest.startsWith("* ") || rest.startsWith("+ ");
            out.append(bullet ? "• " : "");
            inline(bullet ? rest.substring(2) : rest, out, runs);
        }
    }

    /** Bold and code that close on the same line. */
    private static void inline(String text, StringBuilder out, List<Run> runs) {
        int at = 0;
        while (at < text.length()) {
            boolean code = text.charAt(at) == '`';
            String mark = code ? "`" : "**";
            int end = text.startsWith(mark, at) ? text.indexOf(mark, at + mark.length()) : -1;
            String inside = end < 0 ? "" : text.substring(at + mark.length(), end);
            if (inside.isEmpty() || !code && !inside.trim().equals(inside)) {
                out.append(text.charAt(at++));
                continue;
            }
            int start = out.length();
            if (code) {
                out.append(inside);
            } else {
                inline(inside, out, runs);
            }
            runs.add(new Run(code ? Kind.CODE : Kind.BOLD, start, out.length()));
            at = end + mark.length();
        }
    }
}
