package org.sampan.core;

import java.io.File;
import java.nio.file.Files;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.SynchronousQueue;

/**
 * For the tests in Python: the app's chat without its screen. Arguments: model, context, questions, "--" and the
 * engine's command. One JSON line per answer; ends with 1 and a notice where there is none.
 */
public final class Drive {
    private Drive() {}

    public static void main(String[] words) throws Exception {
        List<String> all = Arrays.asList(words);
        int cut = all.indexOf("--");
        List<String> command = all.subList(cut + 1, all.size());
        ExecutorService home = Executors.newSingleThreadExecutor();
        SynchronousQueue<Map<String, Object>> out = new SynchronousQueue<>();
        File folder = Files.createTempDirectory("drive").toFile();
        Chat chat = new Chat(new Store(folder), home, listener -> Engine.start(command, 60_000, listener));
        int[] asked = {2};
        home.execute(() -> {
            chat.setThinks(false);
            chat.watch(() -> home.execute(() -> step(chat, all.subList(0, cut), asked, out)));
            chat.load(new File(words[0]), Integer.parseInt(words[1]));
        });
        int status = 0;
        for (int i = 2; i < cut && status == 0; i++) {
            Map<String, Object> line = out.take();
            System.out.println(Json.write(line));
            status = line.containsKey("notice") ? 1 : 0;
        }
        new Store(folder).delete(chat.conversation().id);
        Files.delete(folder.toPath());
        System.exit(status);
    }

    /** Asks the next question when the last one is answered and measured. */
    private static void step(Chat chat, List<String> words, int[] asked, SynchronousQueue<Map<String, Object>> out) {
        List<Message> messages = chat.conversation().messages;
        boolean answered = messages.size() == 2 * (asked[0] - 2);
        Map<String, Object> line = new LinkedHashMap<>();
        try {
            if (chat.notice() != null) {
                line.put("notice", chat.notice().kind.name());
                line.put("detail", chat.notice().detail);
                out.put(line);
            } else if (chat.state() == Chat.State.READY && answered && chat.memory() > 0) {
                if (!messages.isEmpty()) {
                    Message last = messages.get(messages.size() - 1);
                    line.put("answer", last.said());
                    line.put("reason", last.reason);
                    line.put("speed", last.speed);
                    line.put("memory", chat.memory());
                    line.put("name", chat.modelName());
                    out.put(line);
                }
                if (asked[0] < words.size()) {
                    chat.ask(words.get(asked[0]++));
                }
            }
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
    }
}
