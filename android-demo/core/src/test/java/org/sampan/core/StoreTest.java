package org.sampan.core;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertNotEquals;
import static org.junit.Assert.assertNull;
import static org.junit.Assert.assertTrue;

import java.io.File;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import org.junit.Rule;
import org.junit.Test;
import org.junit.rules.TemporaryFolder;

public class StoreTest {
    @Rule
    public final TemporaryFolder folder = new TemporaryFolder();

    private Conversation talk(Store store, long when, String text) {
        Conversation fresh = store.fresh("m.gguf", 0);
        return fresh.with(Message.user(text), "m.gguf", when).with(new Message("assistant", "<think>x</think>ok", 2.5, "stop"), "m.gguf", when);
    }

    @Test
    public void whatIsSavedIsThereAgain() throws Exception {
        Store store = new Store(new File(folder.getRoot(), "not/yet"));
        Conversation saved = talk(store, 7, "你好 🚤\n\"");
        store.save(saved);
        Conversation read = new Store(new File(folder.getRoot(), "not/yet")).open(saved.id);
        assertEquals(saved.json(), read.json());
        assertEquals("你好 🚤\n\"", read.messages.get(0).text);
        assertEquals(2.5, read.messages.get(1).speed, 0);
        assertEquals("stop", read.messages.get(1).reason);
        assertEquals("m.gguf", read.model);
        store.delete(saved.id);
        store.delete(saved.id);
        assertNull(store.open(saved.id));
    }

    @Test
    public void theLastChangedIsFirstAndEmptyOnesAreNotKept() throws Exception {
        Store store = new Store(folder.getRoot());
        assertTrue(store.all().isEmpty());
        store.save(talk(store, 1, "old"));
        store.save(talk(store, 3, "new"));
        store.save(talk(store, 2, "middle"));
        store.save(store.fresh("", 9));
        List<Conversation> all = store.all();
        assertArrayEquals(new String[] {"new", "middle", "old"}, all.stream().map(Conversation::title).toArray());
        assertArrayEquals("no part is left", new String[0], folder.getRoot().list((f, name) -> name.endsWith(".part")));
    }

    @Test
    public void whatCannotBeReadIsLeftWhereItIs() throws Exception {
        Store store = new Store(folder.getRoot());
        Conversation good = talk(store, 1, "good");
        store.save(good);
        String id = "00000000-0000-0000-0000-00000000000";
        String[] bad = {"", "{", "[]", "{\"version\":2,\"changed\":1,\"messages\":[]}", "{\"version\":1,\"changed\":1,\"messages\":[1]}",
            "{\"version\":1,\"changed\":1,\"messages\":[{\"role\":\"system\",\"text\":\"x\"}]}", "{\"version\":1,\"changed\":1.5,\"messages\":[]}"};
        for (int i = 0; i < bad.length; i++) {
            Files.write(new File(folder.getRoot(), id + i + ".json").toPath(), bad[i].getBytes(StandardCharsets.UTF_8));
        }
        assertTrue(new File(folder.getRoot(), id + "9.json").mkdir());
        assertEquals(Collections.singletonList(good.id), Collections.singletonList(store.all().get(0).id));
        assertEquals(1, store.all().size());
        assertEquals(bad.length + 2, folder.getRoot().list().length);
    }

    @Test
    public void damagedFilesAreReadOrLeftOut() throws Exception {
        Store store = new Store(folder.getRoot());
        Conversation saved = talk(store, 7, "你好 🚤\n\"");
        store.save(saved);
        File file = new File(folder.getRoot(), saved.id + ".json");
        byte[] whole = Files.readAllBytes(file.toPath());
        Random random = new Random(14);
        int read = 0;
        for (int i = 0; i < 3000; i++) {
            byte[] broken = Arrays.copyOf(whole, random.nextInt(4) == 0 ? random.nextInt(whole.length) : whole.length);
            for (int edits = random.nextInt(4); edits > 0 && broken.length > 0; edits--) {
                broken[random.nextInt(broken.length)] = (byte) random.nextInt();
            }
            Files.write(file.toPath(), broken);
            for (Conversation found : store.all()) {
                read++;
                found.json();
                found.title();
                Request.turns(found.messages, true);
            }
        }
        assertTrue("" + read, read > 300 && read < 2700);
    }

    @Test
    public void anIdLeadsNowhereElse() throws Exception {
        Store store = new Store(new File(folder.getRoot(), "in"));
        Files.write(new File(folder.getRoot(), "x.json").toPath(), "{\"version\":1,\"changed\":1,\"messages\":[]}".getBytes(StandardCharsets.UTF_8));
        for (String id : new String[] {"../x", "", "x", "/x"}) {
            assertNull(store.open(id));
        }
        assertNotEquals(store.fresh("", 0).id, store.fresh("", 0).id);
    }

    @Test
    public void titlesAreOneShortLineOfWholeCharacters() {
        Store store = new Store(folder.getRoot());
        assertEquals("", store.fresh("", 0).title());
        assertEquals("one", talk(store, 0, " one\r\ntwo").title());
        StringBuilder boats = new StringBuilder();
        for (int i = 0; i < 100; i++) {
            boats.append("🚤");
        }
        String title = talk(store, 0, boats.toString()).title();
        assertEquals(60, title.codePointCount(0, title.length()));
        assertTrue(title.endsWith("🚤…"));
    }

    @Test
    public void thoughtsAreNotShared() {
        assertEquals("You: hi\n\nModel: ok", talk(new Store(folder.getRoot()), 0, "hi").plain("You", "Model"));
    }

    @Test
    public void turnsAlternateWhateverWasSaved() {
        Message[] turns = {
            Message.user("unanswered"), Message.user("thought only"), new Message("assistant", "<think>hm", 0, "stopped"),
            Message.user("one"), new Message("assistant", "<think>x</think>first", 0, "stop"), Message.user("two"),
        };
        assertEquals("[{role=user, content=one}, {role=assistant, content=first}, {role=user, content=two}]",
            Request.turns(Arrays.asList(turns), false).toString());
    }
}
