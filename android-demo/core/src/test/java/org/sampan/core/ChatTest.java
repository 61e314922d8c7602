package org.sampan.core;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertNotNull;
import static org.junit.Assert.assertNull;
import static org.junit.Assert.assertTrue;

import java.io.File;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import org.junit.After;
import org.junit.Before;
import org.junit.Rule;
import org.junit.Test;
import org.junit.rules.TemporaryFolder;

public class ChatTest {
    @Rule
    public final TemporaryFolder folder = new TemporaryFolder();

    private final ExecutorService home = Executors.newSingleThreadExecutor();
    private final List<Engine> engines = Collections.synchronizedList(new ArrayList<>());
    private Store store;
    private Chat chat;
    private String mode = "normal";

    @Before
    public void open() {
        store = new Store(new File(folder.getRoot(), "conversations"));
        chat = new Chat(store, this::post, listener -> {
            Engine engine = Engine.start(StandIn.command(mode), 20_000, listener);
            engines.add(engine);
            return engine;
        });
    }

    @After
    public void close() {
        for (Engine engine : engines) {
            engine.close();
        }
        home.shutdown();
    }

    /** What an engine says after the test is over is not heard. */
    private void post(Runnable work) {
        if (!home.isShutdown()) {
            home.execute(work);
        }
    }

    private <T> T at(Callable<T> question) throws Exception {
        return home.submit(question).get();
    }

    private void home(Runnable work) throws Exception {
        home.submit(work).get();
    }

    private void until(String what, Callable<Boolean> reached) throws Exception {
        long end = System.nanoTime() + 20_000_000_000L;
        while (!at(reached)) {
            Notice notice = at(chat::notice);
            assertTrue("never " + what + ": " + at(chat::state) + (notice == null ? "" : " " + notice.kind + " " + notice.detail),
                System.nanoTime() < end);
            Thread.sleep(5);
        }
    }

    private void until(Chat.State state) throws Exception {
        until(state.name(), () -> chat.state() == state);
    }

    private void load(String name) throws Exception {
        home(() -> chat.setVisible(true));
        home(() -> chat.load(new File(folder.getRoot(), name), 512));
    }

    private void ready() throws Exception {
        load("model.gguf");
        until(Chat.State.READY);
    }

    private Message last() throws Exception {
        List<Message> messages = at(() -> chat.conversation().messages);
        return messages.get(messages.size() - 1);
    }

    private Notice.Kind kind() throws Exception {
        Notice notice = at(chat::notice);
        return notice == null ? null : notice.kind;
    }

    @Test
    public void answersWithTheWholeConversation() throws Exception {
        ready();
        home(() -> chat.ask("  one  "));
        until(Chat.State.READY);
        assertEquals("<think>weighing</think>You said: one (1)", last().text);
        assertEquals("You said: one (1)", last().said());
        assertEquals("stop", last().reason);
        assertEquals(16, last().speed, 0);
        assertEquals(16, at(chat::speed), 0);
        home(() -> chat.setThinks(false));
        home(() -> chat.ask("two"));
        until(Chat.State.READY);
        assertEquals("You said: two (3)", last().text);
        until("measured", () -> chat.memory() == 12_345_678);
        assertNull(kind());
        Conversation saved = store.open(at(() -> chat.conversation().id));
        assertEquals(4, saved.messages.size());
        assertEquals("model.gguf", saved.model);
    }

    @Test
    public void nothingIsAskedBeforeTheModelIsThere() throws Exception {
        home(() -> chat.ask("hello"));
        assertEquals(Chat.State.NONE, at(chat::state));
        assertTrue(at(() -> chat.conversation().messages.isEmpty()));
        ready();
        home(() -> chat.ask(" \n "));
        assertEquals(Chat.State.READY, at(chat::state));
    }

    @Test
    public void stopKeepsWhatThereIs() throws Exception {
        ready();
        home(() -> chat.ask("forever"));
        until("writing", () -> chat.partial().contains("…"));
        home(chat::stop);
        home(chat::stop);
        until(Chat.State.READY);
        assertEquals("stopped", last().reason);
        assertTrue(last().said(), last().said().startsWith("You said: forever"));
        assertNull(kind());
    }

    @Test
    public void aQuestionWaitsForTheOldAnswerToEnd() throws Exception {
        ready();
        home(() -> chat.ask("forever"));
        until("writing", () -> chat.partial().contains("…"));
        String old = at(() -> chat.conversation().id);
        home(chat::fresh);
        home(() -> chat.ask("next"));
        until(Chat.State.READY);
        assertEquals("nothing of the old answer", "<think>weighing</think>You said: next (1)", last().text);
        assertNull(kind());
        Conversation kept = store.open(old);
        assertEquals("stopped", kept.messages.get(1).reason);
        assertTrue(kept.messages.get(1).text.contains("…"));
    }

    @Test
    public void aWaitingQuestionCanBeStopped() throws Exception {
        ready();
        home(() -> chat.ask("forever"));
        until("writing", () -> chat.partial().contains("…"));
        home(() -> {
            chat.fresh();
            chat.ask("next");
            chat.stop();
        });
        assertEquals(Chat.State.READY, at(chat::state));
        assertEquals("stopped", last().reason);
        home(() -> chat.ask("another"));
        until(Chat.State.READY);
        assertEquals("the question without an answer is left out", "You said: another (1)", last().said());
    }

    @Test
    public void anotherAnswerReplacesTheLast() throws Exception {
        ready();
        home(() -> chat.ask("one"));
        until(Chat.State.READY);
        home(chat::again);
        until(Chat.State.READY);
        assertEquals(2, (int) at(() -> chat.conversation().messages.size()));
        assertEquals("You said: one (1)", last().said());
    }

    @Test
    public void anEngineThatDiesIsToldAndStartedAgain() throws Exception {
        ready();
        home(() -> chat.ask("die"));
        until("dead", () -> chat.notice() != null);
        assertEquals(Notice.Kind.ENGINE_DIED, kind());
        assertTrue(at(() -> chat.notice().detail).startsWith("signal 9"));
        assertEquals("died", last().reason);
        assertEquals("half an ans", last().text);
        until(Chat.State.READY);
        assertEquals("the notice stays until the user saw it", Notice.Kind.ENGINE_DIED, kind());
        assertEquals(2, engines.size());
        home(() -> chat.ask("again"));
        until(Chat.State.READY);
        assertEquals("You said: again (3)", last().said());
        assertNull(kind());
    }

    @Test
    public void anEngineThatDiesTwiceIsNotStartedAThirdTime() throws Exception {
        ready();
        home(() -> chat.ask("die"));
        until("started again", () -> engines.size() == 2 && chat.state() == Chat.State.READY);
        home(() -> chat.ask("die"));
        until(Chat.State.BROKEN);
        assertEquals(Notice.Kind.ENGINE_KEEPS_DYING, kind());
        assertEquals(2, engines.size());
        home(chat::retry);
        until(Chat.State.READY);
        assertEquals(3, engines.size());
    }

    @Test
    public void anEngineThatDiesUnseenSleepsUntilTheUserLooks() throws Exception {
        ready();
        home(() -> chat.setVisible(false));
        home(() -> chat.ask("die"));
        until(Chat.State.ASLEEP);
        assertEquals(1, engines.size());
        home(() -> chat.setVisible(true));
        until(Chat.State.READY);
        assertEquals(2, engines.size());
    }

    @Test
    public void aModelThatCannotBeLoadedIsTold() throws Exception {
        Object[][] cases = {
            {"dies.gguf", Notice.Kind.ENGINE_DIED_LOADING}, {"memory.gguf", Notice.Kind.NO_MEMORY}, {"bad.gguf", Notice.Kind.LOAD_FAILED},
        };
        for (Object[] one : cases) {
            load((String) one[0]);
            until(Chat.State.BROKEN);
            assertEquals(one[1], kind());
        }
        ready();
        assertNull(kind());
    }

    @Test
    public void anEngineThatIsNoneIsTold() throws Exception {
        Object[][] cases = {
            {"exits", Notice.Kind.ENGINE_DIED_LOADING}, {"later", Notice.Kind.ENGINE_PROTOCOL}, {"invalid", Notice.Kind.ENGINE_PROTOCOL},
        };
        for (Object[] one : cases) {
            mode = (String) one[0];
            load("model.gguf");
            until(Chat.State.BROKEN);
            assertEquals(one[1], kind());
        }
    }

    @Test
    public void whatTheEngineCannotAnswerIsTold() throws Exception {
        ready();
        Object[][] cases = {
            {"too_long", Notice.Kind.TOO_LONG}, {"template", Notice.Kind.TEMPLATE}, {"internal", Notice.Kind.FAILED},
            {"length", Notice.Kind.CUT}, {"context", Notice.Kind.CONTEXT_FULL},
        };
        for (Object[] one : cases) {
            home(() -> chat.ask((String) one[0]));
            until(Chat.State.READY);
            assertEquals(one[1], kind());
        }
        home(chat::dismiss);
        assertNull(kind());
    }

    @Test
    public void aQuestionOverTheLimitIsTold() throws Exception {
        ready();
        StringBuilder text = new StringBuilder();
        for (int i = 0; i < Engine.LINE; i++) {
            text.append('x');
        }
        home(() -> chat.ask(text.toString()));
        assertEquals(Notice.Kind.TOO_LONG, kind());
        assertEquals(Chat.State.READY, at(chat::state));
    }

    @Test
    public void theAnswerSoFarIsSavedBeforeTheProcessMayEnd() throws Exception {
        ready();
        home(() -> chat.ask("forever"));
        until("writing", () -> chat.partial().contains("…"));
        home(chat::save);
        Conversation saved = store.open(at(() -> chat.conversation().id));
        assertEquals("died", saved.messages.get(1).reason);
        assertTrue(saved.messages.get(1).text.contains("You said: forever"));
        home(chat::stop);
        until(Chat.State.READY);
        assertEquals(2, store.open(saved.id).messages.size());
    }

    @Test
    public void aDeletedConversationStaysDeleted() throws Exception {
        ready();
        home(() -> chat.ask("forever"));
        until("writing", () -> chat.partial().contains("…"));
        String id = at(() -> chat.conversation().id);
        assertNotNull(store.open(id));
        home(() -> chat.delete(id));
        home(() -> { chat.save(); chat.ask("next"); });
        until(Chat.State.READY);
        assertNull(store.open(id));
        assertEquals("You said: next (1)", last().said());
    }

    @Test
    public void anotherModelTakesTheConversationOver() throws Exception {
        ready();
        home(() -> chat.ask("forever"));
        until("writing", () -> chat.partial().contains("…"));
        load("other.gguf");
        until(Chat.State.READY);
        assertEquals("stopped", last().reason);
        home(() -> chat.ask("two"));
        until(Chat.State.READY);
        assertEquals("You said: two (3)", last().said());
        assertEquals("other.gguf", at(() -> chat.conversation().model));
        assertNull(kind());
    }

    @Test
    public void theConversationThatIsOpenIsNotReplacedByItsOldCopy() throws Exception {
        ready();
        home(() -> chat.ask("forever"));
        until("writing", () -> chat.partial().contains("…"));
        Conversation copy = store.open(at(() -> chat.conversation().id));
        home(() -> chat.open(copy));
        assertEquals(Chat.State.ANSWERING, at(chat::state));
        home(chat::fresh);
        home(() -> chat.open(store.open(copy.id)));
        assertEquals("stopped", last().reason);
    }

    @Test
    public void whatIsBrokenIsToldUntilItWorks() throws Exception {
        load("bad.gguf");
        until(Chat.State.BROKEN);
        home(chat::dismiss);
        home(chat::fresh);
        assertEquals(Notice.Kind.LOAD_FAILED, kind());
        ready();
        assertNull(kind());
    }

    @Test
    public void eventsOfNoRequestChangeNothing() throws Exception {
        load("stray.gguf");
        until(Chat.State.READY);
        assertEquals("stray.gguf", at(chat::modelName));
        home(() -> chat.ask("stray"));
        until(Chat.State.READY);
        assertEquals("<think>weighing</think>You said: stray (1)", last().text);
        home(() -> chat.ask("next"));
        until(Chat.State.READY);
        assertEquals("You said: next (3)", last().said());
        assertEquals(4, (int) at(() -> chat.conversation().messages.size()));
        assertEquals("stray.gguf", at(chat::modelName));
        assertNull(kind());
    }

    @Test
    public void numbersThatCannotBeTrueAreNotShown() throws Exception {
        ready();
        home(() -> chat.ask("fast"));
        until(Chat.State.READY);
        assertEquals(0, at(chat::speed), 0);
        assertEquals("You said: fast (1)", store.open(at(() -> chat.conversation().id)).messages.get(1).said());
    }

    @Test
    public void textIsComposedWhereTheModelWantsIt() throws Exception {
        ready();
        home(() -> chat.ask("e\u0301"));
        until(Chat.State.READY);
        assertEquals("You said: e\u0301 (1)", last().said());
        load("composed.gguf");
        until(Chat.State.READY);
        home(() -> chat.ask("e\u0301"));
        until(Chat.State.READY);
        assertEquals("You said: \u00e9 (3)", last().said());
        assertEquals("as it was typed", "e\u0301", at(() -> chat.conversation().messages.get(2).text));
    }

    @Test
    public void aFolderThatCannotBeWrittenIsTold() throws Exception {
        ready();
        assertTrue(new File(folder.getRoot(), "conversations").createNewFile());
        home(() -> chat.ask("one"));
        until(Chat.State.READY);
        assertEquals(Notice.Kind.NOT_SAVED, kind());
        assertEquals("You said: one (1)", last().said());
    }
}
