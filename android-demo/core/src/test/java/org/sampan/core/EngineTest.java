package org.sampan.core;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertNull;
import static org.junit.Assert.assertTrue;
import static org.junit.Assert.fail;

import java.util.Collections;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.TimeUnit;
import org.junit.Test;

public class EngineTest {
    private static final long LONG = 20_000;
    private static final Map<String, Object> NOTHING = Collections.emptyMap();

    private final StandIn in = new StandIn();

    private static Map<String, Object> chat(String text) {
        return Request.chat(Collections.singletonList(Message.user(text)), false, false, 1);
    }

    private String answer(Engine engine, String text) throws InterruptedException {
        long id = engine.send("chat", chat(text));
        StringBuilder all = new StringBuilder();
        for (Object next = in.next(); ; next = in.next()) {
            Event event = (Event) next;
            if (event.name.equals("done")) {
                return all.toString();
            }
            assertEquals(id, event.id);
            all.append(event.text("text"));
        }
    }

    @Test
    public void loadsAnswersAndEnds() throws Exception {
        Engine engine = in.start("normal", LONG);
        assertEquals(1, in.event("ready").number("protocol"), 0);
        engine.send("load", Request.load("/m/model.gguf", 512));
        assertEquals(0.5, in.event("progress").number("value"), 0);
        assertEquals(512, in.event("loaded").number("context"), 0);
        assertEquals("You said: 你好，🚤\n\"\\ (1)", answer(engine, "你好，🚤\n\"\\"));
        engine.send("stats", NOTHING);
        assertEquals(12_345_678, in.event("stats").number("rss_bytes"), 0);
        engine.send("quit", NOTHING);
        StandIn.Ended ended = in.end();
        assertEquals(Engine.End.DIED, ended.end);
        assertEquals(0, ended.status);
    }

    @Test
    public void charactersMayArriveInPieces() throws Exception {
        Engine engine = in.start("split", LONG);
        in.event("ready");
        assertEquals("You said: 舢板 🚤 é (1)", answer(engine, "舢板 🚤 é"));
        engine.close();
        assertEquals(Engine.End.CLOSED, in.end().end);
    }

    @Test
    public void aSlowStartIsWaitedForAndASilentOneIsNot() throws Exception {
        Engine engine = in.start("slow", LONG);
        in.event("ready");
        engine.close();
        StandIn other = new StandIn();
        long start = System.nanoTime();
        other.start("silent", 300);
        assertEquals(Engine.End.TOO_SLOW, other.end().end);
        assertTrue(TimeUnit.NANOSECONDS.toSeconds(System.nanoTime() - start) < 10);
    }

    @Test
    public void whatIsNotTheProtocolEndsIt() throws Exception {
        String[][] cases = {{"later", "WRONG_PROTOCOL"}, {"invalid", "WRONG_PROTOCOL"}, {"endless", "MALFORMED"}, {"again", "MALFORMED"}};
        for (String[] one : cases) {
            StandIn each = new StandIn();
            each.start(one[0], LONG);
            assertEquals(one[0], Engine.End.valueOf(one[1]), each.end().end);
        }
    }

    @Test
    public void aLineThatIsNoEventEndsIt() throws Exception {
        Engine engine = in.start("normal", LONG);
        in.event("ready");
        engine.send("chat", chat("nonsense"));
        assertEquals(Engine.End.MALFORMED, in.end().end);
        assertNull("nothing follows the end", in.heard.poll(200, TimeUnit.MILLISECONDS));
    }

    @Test
    public void anEventHasANameAndAnIntegerId() throws Exception {
        String[] lines = {
            "", "null", "[]", "{", "{}", "{\"event\":\"x\"}", "{\"id\":1}", "{\"event\":1,\"id\":1}", "{\"event\":\"x\",\"id\":\"1\"}",
            "{\"event\":\"x\",\"id\":1.5}", "{\"event\":\"x\",\"id\":9223372036854775808}", "{\"event\":\"x\",\"id\":1}{}",
            "{\"event\":\"x\",\"id\":1,\"more\":" + String.join("", Collections.nCopies(5000, "[")),
        };
        for (String line : lines) {
            try {
                Event.of(line);
                fail(line);
            } catch (Json.Malformed e) {
                assertTrue(e.getMessage(), e.getMessage().startsWith("expected "));
            }
        }
        Event odd = Event.of("{\"event\":\"x\",\"id\":1,\"text\":5,\"value\":\"7\",\"nfc\":1}");
        assertEquals("", odd.text("text"));
        assertEquals(0, odd.number("value"), 0);
        assertFalse(odd.flag("nfc"));
    }

    @Test
    public void damagedLinesAreEventsOrMalformed() {
        String line = "{\"event\":\"done\",\"id\":12,\"reason\":\"stop\",\"tokens\":57,\"text\":\"\\u4f60 \\n好\",\"decode_ms\":1.5e2,\"a\":[true,null,{}]}";
        String parts = "{}[]\",:\\u0123456789.eE+-truefalsn \u0000\ud800好";
        Random random = new Random(14);
        int malformed = 0;
        for (int i = 0; i < 20_000; i++) {
            StringBuilder broken = new StringBuilder(line);
            for (int edits = 1 + random.nextInt(4); edits > 0; edits--) {
                broken.setCharAt(random.nextInt(broken.length()), parts.charAt(random.nextInt(parts.length())));
            }
            broken.setLength(random.nextInt(8) == 0 ? random.nextInt(broken.length()) : broken.length());
            try {
                Event event = Event.of(broken.toString());
                assertTrue(broken.toString(), event.rate("tokens", "decode_ms") >= 0);
            } catch (Json.Malformed e) {
                malformed++;
            }
        }
        assertTrue("" + malformed, malformed > 5000 && malformed < 20_000);
    }

    @Test
    public void deathInTheMiddleOfALineIsToldWithItsSignal() throws Exception {
        Engine engine = in.start("normal", LONG);
        in.event("ready");
        engine.send("chat", chat("die"));
        assertEquals("half an ans", in.event("text").text("text"));
        StandIn.Ended ended = in.end();
        assertEquals(Engine.End.DIED, ended.end);
        assertEquals(128 + 9, ended.status);
        engine.send("stats", NOTHING);
        engine.close();
        assertNull(in.heard.poll(200, TimeUnit.MILLISECONDS));
    }

    @Test
    public void anExitIsToldWithWhatItSaid() throws Exception {
        in.start("exits", LONG);
        StandIn.Ended ended = in.end();
        assertEquals(Engine.End.DIED, ended.end);
        assertEquals(3, ended.status);
        assertEquals("cannot find it", ended.log);
    }

    @Test
    public void aProgramThatIsNotThereIsTold() throws Exception {
        Engine engine = Engine.start(Collections.singletonList("/no/such/engine"), LONG, in);
        StandIn.Ended ended = in.end();
        assertEquals(Engine.End.NOT_STARTED, ended.end);
        assertTrue(ended.log, ended.log.contains("/no/such/engine"));
        engine.send("stats", NOTHING);
        engine.close();
    }

    @Test
    public void aFullErrorPipeDoesNotStopIt() throws Exception {
        Engine engine = in.start("noisy", LONG);
        in.event("ready");
        engine.send("quit", NOTHING);
        StandIn.Ended ended = in.end();
        assertTrue(ended.log.endsWith("the end"));
        assertTrue("bounded", ended.log.length() <= 4 * 4096 + 1024);
    }

    @Test
    public void aRequestOverTheLimitIsNotSent() throws Exception {
        Engine engine = in.start("normal", LONG);
        in.event("ready");
        StringBuilder text = new StringBuilder();
        for (int i = 0; i < Engine.LINE / 2; i++) {
            text.append("好");
        }
        boolean refused = false;
        try {
            engine.send("chat", chat(text.toString()));
        } catch (IllegalArgumentException e) {
            refused = true;
        }
        assertTrue(refused);
        assertEquals("You said: still here (1)", answer(engine, "still here"));
        engine.close();
    }

    @Test
    public void aSecondChatAtOnceIsRefusedByTheEngine() throws Exception {
        Engine engine = in.start("normal", LONG);
        in.event("ready");
        long first = engine.send("chat", chat("forever"));
        in.event("text");
        long second = engine.send("chat", chat("me too"));
        Event error = in.event("error");
        assertEquals(second, error.id);
        assertEquals("bad_request", error.text("code"));
        engine.send("stop", Request.stop(first));
        assertEquals("stopped", in.event("done").text("reason"));
        engine.close();
    }

    @Test
    public void requestsKeepTheirOrder() throws Exception {
        Engine engine = in.start("normal", LONG);
        in.event("ready");
        long last = 0;
        for (int i = 0; i < 50; i++) {
            long id = engine.send("stats", NOTHING);
            assertTrue(id > last);
            last = id;
        }
        for (long id = last - 49; id <= last; id++) {
            assertEquals(id, in.event("stats").id);
        }
        engine.close();
    }
}
