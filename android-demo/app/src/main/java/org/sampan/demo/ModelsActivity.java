package org.sampan.demo;

import android.app.Activity;
import android.app.AlertDialog;
import android.content.ActivityNotFoundException;
import android.content.Intent;
import android.os.Bundle;
import android.view.View;
import android.widget.Button;
import android.widget.ListView;
import android.widget.ProgressBar;
import android.widget.TextView;
import java.io.File;
import java.util.List;

/** The models on the phone: load one, delete one, copy another in. */
public final class ModelsActivity extends Activity {
    private static final int PICK = 1;

    private App app;
    private Models models;
    private Loader loader;
    private Items items;
    private AlertDialog question;
    private String copying = "";

    @Override
    protected void onCreate(Bundle saved) {
        super.onCreate(saved);
        setContentView(R.layout.list);
        Words.inset(this);
        app = App.of(this);
        models = app.models();
        loader = new Loader(this);
        items = new Items(this);
        ((TextView) findViewById(R.id.title)).setText(R.string.models);
        ((TextView) findViewById(R.id.hint)).setText(getString(R.string.models_hint, "adb push model.gguf " + models.folder()));
        findViewById(R.id.back).setOnClickListener(view -> finish());
        findViewById(R.id.add).setOnClickListener(view -> add());
        ListView list = findViewById(R.id.list);
        list.setAdapter(items);
        list.setOnItemClickListener((parent, view, at, id) -> loader.load((File) items.getItem(at), this::finish));
    }

    @Override
    protected void onStart() {
        super.onStart();
        models.watch(this::render);
        refresh();
        render();
    }

    @Override
    protected void onStop() {
        super.onStop();
        models.watch(() -> { });
    }

    @Override
    protected void onDestroy() {
        super.onDestroy();
        loader.close();
        if (question != null) {
            question.dismiss();
        }
    }

    private void add() {
        if (models.copying() != null) {
            models.stop();
            return;
        }
        try {
            startActivityForResult(new Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType("*/*"), PICK);
        } catch (ActivityNotFoundException e) {
            loader.tell(getString(R.string.copy_unread), null);
        }
    }

    @Override
    protected void onActivityResult(int request, int result, Intent data) {
        if (request == PICK && result == RESULT_OK && data != null && data.getData() != null) {
            models.copy(data.getData());
        }
    }

    private void refresh() {
        List<File> all = models.all();
        items.clear();
        for (File file : all) {
            String size = Words.bytes(this, file.length());
            boolean bundled = models.isBundled(file);
            items.add(file, file.getName(), bundled ? getString(R.string.model_bundled, size) : size, bundled ? null : () -> delete(file));
        }
        items.notifyDataSetChanged();
    }

    private void delete(File file) {
        question = new AlertDialog.Builder(this).setMessage(getString(R.string.delete_model, file.getName()))
            .setPositiveButton(R.string.delete, (dialog, which) -> {
                file.delete();
                refresh();
            }).setNegativeButton(R.string.cancel, null).show();
    }

    private String title(String name) {
        if (name == null) {
            return getString(R.string.models);
        }
        String copied = Words.bytes(this, models.copied());
        return models.size() == 0 ? getString(R.string.copying_unknown, name, copied)
            : getString(R.string.copying, name, copied, Words.bytes(this, models.size()));
    }

    private void render() {
        String name = models.copying();
        ProgressBar progress = findViewById(R.id.progress);
        progress.setVisibility(name == null ? View.GONE : View.VISIBLE);
        progress.setIndeterminate(models.size() == 0);
        if (models.size() > 0) {
            progress.setProgress((int) (1000.0 * models.copied() / models.size()));
        }
        Button add = findViewById(R.id.add);
        add.setText(name == null ? R.string.pick_file : R.string.stop_copying);
        if (name == null && !copying.isEmpty()) {
            refresh();
        }
        ((TextView) findViewById(R.id.title)).setText(title(name));
        copying = name == null ? "" : name;
        String trouble = models.trouble();
        if (trouble != null) {
            loader.tell(trouble, null);
        }
    }
}
