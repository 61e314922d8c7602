package org.sampan.core;

import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.StandardCopyOption;
import java.util.ArrayList;
import java.util.List;
import java.util.UUID;

/** Conversations in a folder, one JSON file each, replaced whole. */
public final class Store {
    private static final String END = ".json";
    private static final long LIMIT = 16 << 20;

    private final File folder;

    public Store(File folder) {
        this.folder = folder;
    }

    public Conversation fresh(String model, long now) {
        return new Conversation(UUID.randomUUID().toString(), now, model, new ArrayList<Message>());
    }

    /** An empty conversation is not kept. */
    public void save(Conversation conversation) throws IOException {
        if (conversation.messages.isEmpty()) {
            return;
        }
        Files.createDirectories(folder.toPath());
        File part = new File(folder, conversation.id + ".part");
        try (FileOutputStream out = new FileOutputStream(part)) {
            out.write(conversation.json().getBytes(StandardCharsets.UTF_8));
            out.getFD().sync();
        }
        Files.move(part.toPath(), file(conversation.id).toPath(), StandardCopyOption.REPLACE_EXISTING, StandardCopyOption.ATOMIC_MOVE);
    }

    /** The last changed first. A file that cannot be read is left where it is. */
    public List<Conversation> all() {
        List<Conversation> found = new ArrayList<>();
        String[] names = folder.list();
        for (String name : names == null ? new String[0] : names) {
            if (name.endsWith(END)) {
                Conversation conversation = open(name.substring(0, name.length() - END.length()));
                if (conversation != null) {
                    found.add(conversation);
                }
            }
        }
        found.sort((a, b) -> a.changed != b.changed ? Long.compare(b.changed, a.changed) : a.id.compareTo(b.id));
        return found;
    }

    /** Null where there is none, or none that can be read. */
    public Conversation open(String id) {
        if (!id.matches("[0-9a-f-]{36}") || file(id).length() > LIMIT) {
            return null;
        }
        try {
            return Conversation.parse(id, new String(Files.readAllBytes(file(id).toPath()), StandardCharsets.UTF_8));
        } catch (IOException | Json.Malformed e) {
            return null;
        }
    }

    public void delete(String id) throws IOException {
        Files.deleteIfExists(file(id).toPath());
    }

    private File file(String id) {
        return new File(folder, id + END);
    }
}
