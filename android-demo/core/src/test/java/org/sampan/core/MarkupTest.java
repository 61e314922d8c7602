package org.sampan.core;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertTrue;

import java.util.Random;
import org.junit.Test;

public class MarkupTest {
    /** The text, then each run as KIND[piece]. */
    private static String shown(String markdown) {
        Markup markup = Markup.of(markdown);
        StringBuilder out = new StringBuilder(markup.text);
        for (Markup.Run run : markup.runs) {
            out.append(" ").append(run.kind).append("[").append(markup.text, run.start, run.end).append("]");
        }
        return out.toString();
    }

    @Test
    public void plainTextStays() {
        for (String text : new String[] {"", "Hello.\n\n你好 🚤", "2 * 3 ** 4", "a ** b ** c", "#hash", "####### seven", "-5", "``", "****", "a\n"}) {
            assertEquals(text, Markup.of(text).text);
            assertTrue(text, Markup.of(text).runs.isEmpty());
        }
    }

    @Test
    public void whatModelsWrite() {
        assertEquals("Use a very b now. BOLD[very b]", shown("Use a **very b** now."));
        assertEquals("x `y CODE[x]", shown("`x` `y"));
        assertEquals("**not bold** CODE[**not bold**]", shown("`**not bold**`"));
        assertEquals("a b CODE[b] BOLD[a b]", shown("**a `b`**"));
        assertEquals("Title bold BOLD[bold] HEADING[Title bold]", shown("## Title **bold**"));
        assertEquals("• one\n  • two\n1. three BOLD[two]", shown("- one\n  * **two**\n1. three"));
    }

    @Test
    public void fences() {
        assertEquals("a\nx = **1**\n# y\nb BLOCK[x = **1**\n# y\n]", shown("a\n```python\nx = **1**\n# y\n```\nb"));
        assertEquals("still open BLOCK[still open]", shown("```\nstill open"));
        assertEquals("``` inside BLOCK[``` inside]", shown("~~~\n``` inside\n~~~"));
        assertEquals("", shown("```"));
    }

    @Test
    public void anyPartOfAnyTextHasRunsInside() {
        Random random = new Random(5);
        String[] pieces = {"**", "`", "```", "\n", "# ", "- ", " ", "a", "好", "~~~", "*"};
        for (int i = 0; i < 20_000; i++) {
            StringBuilder text = new StringBuilder();
            for (int n = random.nextInt(16); n > 0; n--) {
                text.append(pieces[random.nextInt(pieces.length)]);
            }
            Markup markup = Markup.of(text.toString());
            for (Markup.Run run : markup.runs) {
                assertTrue(text.toString(), 0 <= run.start && run.start < run.end && run.end <= markup.text.length());
            }
        }
    }
}
