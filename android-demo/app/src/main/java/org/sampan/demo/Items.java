package org.sampan.demo;

import android.app.Activity;
import android.view.View;
import android.view.ViewGroup;
import android.widget.BaseAdapter;
import android.widget.TextView;
import java.util.ArrayList;
import java.util.List;

/** Rows of a name, a line about it and a button to delete it. */
final class Items extends BaseAdapter {
    private static final class Item {
        final Object value;
        final String name;
        final String about;
        final Runnable delete;

        Item(Object value, String name, String about, Runnable delete) {
            this.value = value;
            this.name = name;
            this.about = about;
            this.delete = delete;
        }
    }

    private final Activity activity;
    private final List<Item> items = new ArrayList<>();

    Items(Activity activity) {
        this.activity = activity;
    }

    void clear() {
        items.clear();
    }

    /** `delete` null: it cannot be deleted. */
    void add(Object value, String name, String about, Runnable delete) {
        items.add(new Item(value, name, about, delete));
    }

    @Override
    public int getCount() {
        return items.size();
    }

    @Override
    public Object getItem(int at) {
        return items.get(at).value;
    }

    @Override
    public long getItemId(int at) {
        return at;
    }

    @Override
    public View getView(int at, View old, ViewGroup parent) {
        View row = old != null ? old : activity.getLayoutInflater().inflate(R.layout.row_item, parent, false);
        Item item = items.get(at);
        ((TextView) row.findViewById(R.id.name)).setText(item.name);
        ((TextView) row.findViewById(R.id.about)).setText(item.about);
        View delete = row.findViewById(R.id.delete);
        delete.setVisibility(item.delete == null ? View.GONE : View.VISIBLE);
        delete.setContentDescription(activity.getString(R.string.delete) + " " + item.name);
        delete.setOnClickListener(view -> item.delete.run());
        return row;
    }
}
