package org.sampan.core;

import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.StandardCopyOption;

/** A model copied into the app's folder: beside its name first, and under it only when it is whole. */
public final class Copy {
    public interface Progress {
        /** Bytes so far; false stops the copy. */
        boolean reached(long bytes);
    }

    public static final class Stopped extends IOException { }

    /** The ending of a file that is being copied: one of its own, since `adb push` may be at work in the folder too. */
    public static final String PART = ".copying";

    private Copy() {}

    /** A file name from what another app calls the file, which may be anything: no folder, no hidden file, one ending. */
    public static String name(String shown) {
        String last = shown.substring(Math.max(shown.lastIndexOf('/'), shown.lastIndexOf('\\')) + 1);
        String plain = last.replaceAll("[^\\p{L}\\p{N}._ ()+-]", "_").trim().replaceAll("^\\.+", "").replaceAll("(?i)\\.gguf$", "");
        int end = plain.offsetByCodePoints(0, Math.min(60, plain.codePointCount(0, plain.length())));
        return (plain.isEmpty() ? "model" : plain.substring(0, end)) + ".gguf";
    }

    /** Copies, then reads the header: what is no whole model is deleted again. */
    public static void to(File target, InputStream in, Progress progress) throws IOException, Gguf.Bad {
        Files.createDirectories(target.getParentFile().toPath());
        File part = new File(target.getParentFile(), target.getName() + PART);
        try {
            try (FileOutputStream out = new FileOutputStream(part)) {
                byte[] chunk = new byte[1 << 18];
                long bytes = 0;
                for (int n; (n = in.read(chunk)) >= 0; ) {
                    out.write(chunk, 0, n);
                    bytes += n;
                    if (!progress.reached(bytes)) {
                        throw new Stopped();
                    }
                }
                out.getFD().sync();
            }
            Gguf.read(part);
            Files.move(part.toPath(), target.toPath(), StandardCopyOption.ATOMIC_MOVE);
        } finally {
            Files.deleteIfExists(part.toPath());
        }
    }
}
