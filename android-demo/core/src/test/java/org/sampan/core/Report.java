package org.sampan.core;

import java.io.File;
import java.io.IOException;
import java.util.LinkedHashMap;
import java.util.Map;

/** For the tests in Python: what the app knows of each model, one JSON line per file. */
public final class Report {
    private Report() {}

    public static void main(String[] files) throws IOException {
        for (String file : files) {
            Map<String, Object> out = new LinkedHashMap<>();
            try {
                Gguf model = Gguf.read(new File(file));
                Fit fit = Fit.of(model, 8L << 30, 8L << 30);
                out.put("architecture", model.architecture);
                out.put("tensors", model.tensors);
                out.put("vocabulary", model.vocabulary);
                out.put("context", fit.context);
                out.put("need", fit.need);
                out.put("cache", Fit.cache(model, fit.context));
            } catch (Gguf.Bad e) {
                out.put("fault", e.fault.name());
                out.put("detail", e.getMessage());
            }
            System.out.println(Json.write(out));
        }
    }
}
