package millrace

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestRowRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := genRow.Draw(t, "row")
		// What the row held before must not shine through.
		r := Row{Version: 99, Columns: slices.Repeat([]Datum{{ColumnUnchanged, []byte("before")}}, 3)}
		if err := DecodeRow(b, &r); err != nil {
			t.Fatal(err)
		}
		if again := AppendRow(nil, r.Version, r.Columns); !bytes.Equal(again, b) {
			t.Fatalf("got %x, want %x", again, b)
		}
		for i, d := range r.Columns {
			if d.State != ColumnValue && d.Text != nil {
				t.Fatalf("column %d is %v and has a text", i, d.State)
			}
			_ = append(d.Text, "xxxx"...)
		}
		if again := AppendRow(nil, r.Version, r.Columns); !bytes.Equal(again, b) {
			t.Fatal("appending to a text wrote into the row")
		}
	})
}

func TestRowBytes(t *testing.T) {
	got := AppendRow(nil, 300, []Datum{
		{Text: []byte("7")}, {State: ColumnNull}, {State: ColumnUnchanged}, {State: ColumnMissing}, {Text: []byte{}},
	})
	// Version 300, five columns, states 0 1 2 3 from the lowest bits, then 0,
	// "7" and the empty text.
	want := []byte{0xac, 0x02, 5, 0b11_10_01_00, 0, 1, '7', 0}
	if !bytes.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
}

func TestRowRefuses(t *testing.T) {
	tests := []struct {
		name string
		row  []byte
		want string
	}{
		{"nothing", nil, "bad schema version"},
		{"version 0", []byte{0, 0}, "bad schema version"},
		{"version without end", bytes.Repeat([]byte{0xff}, 11), "bad schema version"},
		{"no number of columns", []byte{1}, "bad number of columns"},
		{"many columns", binary.AppendUvarint([]byte{1}, MaxColumns+1), "bad number of columns"},
		{"columns beyond 32 bits", binary.AppendUvarint([]byte{1}, 1<<63), "bad number of columns"},
		{"no states", []byte{1, 5, 0}, "column states are cut off"},
		{"bits after the last column", []byte{1, 1, 0b0101}, "bits are set after the last column"},
		{"no text", []byte{1, 1, 0}, "a text is cut off"},
		{"short text", []byte{1, 1, 0, 2, 'a'}, "a text is cut off"},
		{"text beyond 63 bits", append([]byte{1, 1, 0}, bytes.Repeat([]byte{0xff}, 9)...), "a text is cut off"},
		{"text of 2^64-1 bytes", append(append([]byte{1, 1, 0}, bytes.Repeat([]byte{0xff}, 9)...), 1), "a text is cut off"},
		{"byte after the last column", []byte{1, 1, 1, 0}, "bytes follow"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var r Row
			if err := DecodeRow(tt.row, &r); !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want ErrMalformed with %q", err, tt.want)
			}
		})
	}
}

func TestRowHasUnchanged(t *testing.T) {
	r := Row{Columns: []Datum{{State: ColumnNull}, {State: ColumnMissing}}}
	if r.HasUnchanged() {
		t.Error("a row without unchanged columns has some")
	}
	r.Columns[1].State = ColumnUnchanged
	if !r.HasUnchanged() {
		t.Error("an unchanged column is not seen")
	}
}
