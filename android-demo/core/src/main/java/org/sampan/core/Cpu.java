package org.sampan.core;

import java.util.Arrays;
import java.util.LinkedHashSet;
import java.util.Locale;
import java.util.Set;

/** What the processor can do, from /proc/cpuinfo, and which build of the engine it runs. */
public final class Cpu {
    private Cpu() {}

    /** A build of the engine and the features without which it ends with SIGILL, in the kernel's names. */
    private static final String[][] BUILDS = {
        {"libsampan_engine_i8mm.so", "asimd", "asimddp", "i8mm"},
        {"libsampan_engine.so", "asimd", "asimddp"},
    };

    /** Features that every core has: cores of one phone may differ, and a thread may move to any of them. */
    public static Set<String> features(String cpuinfo) {
        Set<String> common = null;
        for (String line : cpuinfo.split("\n")) {
            int colon = line.indexOf(':');
            if (colon > 0 && line.substring(0, colon).trim().equals("Features")) {
                Set<String> core = new LinkedHashSet<>(Arrays.asList(line.substring(colon + 1).trim().toLowerCase(Locale.ROOT).split("\\s+")));
                core.remove("");
                if (common == null) {
                    common = core;
                } else {
                    common.retainAll(core);
                }
            }
        }
        return common == null ? new LinkedHashSet<String>() : common;
    }

    /** File name of the best build, or null where none runs. */
    public static String build(Set<String> features) {
        for (String[] build : BUILDS) {
            if (missing(build, features).isEmpty()) {
                return build[0];
            }
        }
        return null;
    }

    /** What the processor lacks even for the plainest build. */
    public static Set<String> missing(Set<String> features) {
        return missing(BUILDS[BUILDS.length - 1], features);
    }

    private static Set<String> missing(String[] build, Set<String> features) {
        Set<String> missing = new LinkedHashSet<>(Arrays.asList(build).subList(1, build.length));
        missing.removeAll(features);
        return missing;
    }
}
