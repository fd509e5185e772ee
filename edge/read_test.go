package edge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/millrace-db/millrace"
)

// Prefixes, cursors and keys of every length, compared with a sorted list.
func TestScanLongKeys(t *testing.T) {
	s := openStore(t, t.TempDir())
	f := newFeed(t, s)
	schema := testSchema(1, 1, "k", oidText, "note")
	tf := f.loaded(schema)
	var keys []string
	for _, n := range []int{1, 2, 10, 400, 438, 439, 440, 441, 469, 470, 471, 472, 473, 500, 2000} {
		for _, end := range []string{"", "a", "z", "zz"} {
			keys = append(keys, strings.Repeat("k", n)+end)
		}
	}
	keys = append(keys, "other", "")
	for _, k := range keys {
		f.must(tf.put(k, "v"+k))
	}
	err := s.View(context.Background(), func(v *View) error {
		table, err := v.Table("public.k")
		if err != nil {
			return err
		}
		var row Row
		for _, k := range keys {
			if err := table.Get(encodeKey(t, schema, k), &row); err != nil || string(row.Columns[1].Text) != "v"+k {
				t.Errorf("key of %d bytes: %v", len(k), err)
			}
			if err := table.Get(encodeKey(t, schema, k+"!"), &row); !errors.Is(err, ErrNotFound) {
				t.Errorf("absent key of %d bytes: %v", len(k)+1, err)
			}
		}
		for _, p := range append(keys, "none", "kk", strings.Repeat("k", 450), strings.Repeat("k", 480)) {
			prefix, err := table.Codec().AppendPrefix(nil, [][]byte{[]byte(p)}, true)
			if err != nil {
				return err
			}
			var want, got []string
			for _, k := range keys {
				if strings.HasPrefix(k, p) {
					want = append(want, k)
				}
			}
			// In pages of three, each going on after the last key of the one before.
			var after, stored []byte
			for {
				n := 0
				err := table.Scan(prefix, after, 3, func(key []byte, row *Row) error {
					next := millrace.StoreKey(nil, key)
					if bytes.Compare(stored, next) >= 0 {
						return fmt.Errorf("key %x comes after %x", next, stored)
					}
					stored, after = next, append([]byte(nil), key...)
					got = append(got, string(row.Columns[0].Text))
					n++
					return nil
				})
				if err != nil {
					return err
				}
				if n < 3 {
					break
				}
			}
			slices.Sort(want)
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("prefix of %d bytes gives %d keys, want %d", len(p), len(got), len(want))
			}
		}
		stop := errors.New("stop")
		if err := table.Scan(nil, nil, 0, func([]byte, *Row) error { return stop }); !errors.Is(err, stop) {
			t.Errorf("Scan returns %v, want what its function returned", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestViewExpires(t *testing.T) {
	s := openStore(t, t.TempDir(), func(o *Options) { o.MaxViewAge = time.Millisecond })
	f := newFeed(t, s)
	tf := f.loaded(testSchema(1, 1, "t", oidInt8, "note"))
	f.must(tf.put("1", "a"))
	read := func(table *Table) error { return table.Get(encodeKey(t, tf.schema, "1"), new(Row)) }
	err := s.View(context.Background(), func(v *View) error {
		table, err := v.Table("public.t")
		if err != nil {
			return err
		}
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if err := read(table); err != nil {
				return err
			}
		}
		return nil
	})
	if !errors.Is(err, ErrExpired) {
		t.Errorf("reads of an old view give %v, want ErrExpired", err)
	}
	err = s.View(context.Background(), func(v *View) error {
		table, err := v.Table("public.t")
		if err != nil {
			return err
		}
		return read(table)
	})
	if err != nil {
		t.Errorf("the next view: %v", err)
	}
}

func TestViewsAreBounded(t *testing.T) {
	s := openStore(t, t.TempDir(), func(o *Options) { o.MaxViews = 1 })
	ctx, cancel := context.WithCancel(context.Background())
	err := s.View(context.Background(), func(*View) error {
		cancel()
		return s.View(ctx, func(*View) error { return nil })
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("second view of one: %v, want context.Canceled", err)
	}
}

func TestClosed(t *testing.T) {
	s := openStore(t, t.TempDir())
	done := make(chan error, 1)
	go func() { done <- s.WaitIndex(context.Background(), 5) }()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("WaitIndex of a closed store: %v", err)
	}
	if err := s.View(context.Background(), func(*View) error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("View of a closed store: %v", err)
	}
}

// Many readers beside a writer that changes rows, generations and schemas. Each
// view is at the end of a unit: all rows of both tables have the same value.
func TestReadersBesideWriter(t *testing.T) {
	reg := prometheus.NewRegistry()
	s := openStore(t, t.TempDir(), func(o *Options) { o.Registerer = reg })
	f := newFeed(t, s)
	a, b := f.loaded(testSchema(1, 1, "a", oidInt8, "note")), f.loaded(testSchema(2, 2, "b", oidInt8, "note"))
	ctx := context.Background()
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Add(1)
		go func() {
			defer readers.Done()
			var last millrace.Index
			for {
				select {
				case <-stop:
					return
				default:
				}
				err := s.View(ctx, func(v *View) error {
					if v.Index() < last {
						return fmt.Errorf("index went from %v to %v", last, v.Index())
					}
					last = v.Index()
					value, rows := "", 0
					for _, name := range []string{"public.a", "public.b"} {
						table, err := v.Table(name)
						if err != nil {
							return err
						}
						err = table.Scan(nil, nil, 0, func(_ []byte, row *Row) error {
							if v := string(row.Columns[1].Text); rows > 0 && v != value {
								return fmt.Errorf("rows hold %s and %s", value, v)
							}
							value = string(row.Columns[1].Text)
							rows++
							return nil
						})
						if err != nil {
							return err
						}
					}
					if rows != 0 && rows != 20 {
						return fmt.Errorf("%d rows, want 20", rows)
					}
					return nil
				})
				if err != nil {
					t.Errorf("View: %v", err)
					return
				}
			}
		}()
	}
	load := millrace.LoadID(10)
	for i := range 150 {
		value := fmt.Sprint(i)
		var unit []*millrace.Entry
		for _, tf := range []tableFeed{a, b} {
			kind := tf.put
			switch i % 10 {
			case 3:
				unit = append(unit, tf.control(millrace.KindTruncate, 0))
			case 6:
				load++
				l := load
				unit = append(unit, tf.control(millrace.KindLoadBegin, l))
				kind = func(values ...string) *millrace.Entry { return tf.load(l, values...) }
			}
			for id := range 10 {
				unit = append(unit, kind(fmt.Sprint(id), value))
			}
			if i%10 == 6 {
				unit = append(unit, tf.control(millrace.KindLoadEnd, load))
			}
		}
		f.must(unit...)
		if i%4 == 0 {
			if _, err := f.w.Chore(); err != nil {
				t.Fatal(err)
			}
		}
		if i%25 == 0 {
			if err := s.Check(ctx); err != nil {
				t.Fatal(err)
			}
			if _, err := reg.Gather(); err != nil {
				t.Fatal(err)
			}
		}
	}
	close(stop)
	readers.Wait()
}
