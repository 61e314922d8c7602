package org.sampan.core;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertTrue;

import org.junit.Test;

public class ThinkingTest {
    private static void check(String text, String thought, String answer) {
        Thinking parts = Thinking.of(text, false);
        assertEquals(thought, parts.thought);
        assertEquals(answer, parts.answer);
        assertFalse(parts.open);
    }

    @Test
    public void thoughtsAreCutOff() {
        check("Hello.", "", "Hello.");
        check("<think>\nhm\n</think>\n\nHello.", "hm", "Hello.");
        check("\n <think></think> Hello.", "", "Hello.");
        check("◁think▷嗯◁/think▷你好", "嗯", "你好");
    }

    @Test
    public void aThoughtThatBeganInThePromptHasOnlyItsEnd() {
        check("hm\n</think>\nHello.", "hm", "Hello.");
    }

    @Test
    public void aThoughtThatWasCutOffIsNoAnswer() {
        check("<think>hm", "hm", "");
    }

    @Test
    public void tagsLaterInTheAnswerAreText() {
        check("Write <think> first.", "", "Write <think> first.");
        check("<think>a</think>b</think>c", "a", "b</think>c");
    }

    @Test
    public void noTagIsSeenWhileItComesInPieces() {
        for (String[] tag : new String[][] {{"<think>", "</think>"}, {"◁think▷", "◁/think▷"}}) {
            String text = tag[0] + "hm" + tag[1] + "Hi < you";
            for (int n = 1; n < text.length(); n++) {
                Thinking parts = Thinking.of(text.substring(0, n), true);
                assertTrue(parts.thought, "hm".startsWith(parts.thought));
                assertTrue(parts.answer, "Hi < you".startsWith(parts.answer));
                assertEquals(n < (tag[0] + "hm" + tag[1]).length(), parts.open);
            }
        }
    }

    @Test
    public void anAnswerWithoutThoughtsIsNotOpen() {
        assertFalse(Thinking.of("", true).open);
        assertEquals("Hello", Thinking.of("Hello</thi", true).answer);
        assertEquals("Hello</thi", Thinking.of("Hello</thi", false).answer);
    }
}
