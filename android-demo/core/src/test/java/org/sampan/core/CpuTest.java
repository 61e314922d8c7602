package org.sampan.core;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertNull;
import static org.junit.Assert.assertTrue;

import org.junit.Test;

public class CpuTest {
    private static final String NEW = "fp asimd evtstrm aes pmull crc32 atomics fphp asimdhp asimddp sve i8mm bf16";
    private static final String PLAIN = "fp asimd aes crc32 atomics fphp asimdhp asimddp";
    private static final String OLD = "half thumb fp asimd aes crc32";

    private static String cpuinfo(String... cores) {
        StringBuilder out = new StringBuilder();
        for (int i = 0; i < cores.length; i++) {
            out.append("processor\t: ").append(i).append("\nBogoMIPS\t: 38.40\nFeatures\t: ").append(cores[i]).append("\nCPU part\t: 0xd4d\n\n");
        }
        return out + "Hardware\t: some board\n";
    }

    private static String build(String... cores) {
        return Cpu.build(Cpu.features(cpuinfo(cores)));
    }

    @Test
    public void theBestBuildThatEveryCoreRuns() {
        assertEquals("libsampan_engine_i8mm.so", build(NEW, NEW));
        assertEquals("libsampan_engine.so", build(PLAIN));
        assertEquals("libsampan_engine.so", build(NEW, PLAIN, NEW));
    }

    @Test
    public void aProcessorThatLacksAFeatureIsToldWhich() {
        assertNull(build(OLD, NEW));
        assertEquals("[asimddp]", Cpu.missing(Cpu.features(cpuinfo(OLD))).toString());
    }

    @Test
    public void wordsAreWhole() {
        assertNull(build("asimd asimddpx i8mm"));
    }

    @Test
    public void anythingElseHasNoFeatures() {
        for (String text : new String[] {"", "flags\t: asimd asimddp i8mm", "Features\t:", "\n\n:\nFeatures"}) {
            assertTrue(text, Cpu.features(text).isEmpty());
        }
    }
}
