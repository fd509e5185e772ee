package image

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"syscall"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/millrace-db/millrace"
	"github.com/millrace-db/millrace/internal/failpoint"
)

const (
	loadSuffix = ".load"
	// maxListing is the largest size of a Listing.
	maxListing = 1 << 20
	// silence is how long an answer may take to begin, and one that is no rows to end.
	silence = 2 * time.Minute
	// Of rows, leastBytes have to come in each leastTime, or the connection counts as dead:
	// a peer that gives a byte now and then would be waited for as long as it likes.
	leastBytes = 256 << 10
	leastTime  = 30 * time.Second
	// tries is how often a download is begun anew without having come further, or not as
	// fast as that.
	tries = 6
	// maxChosen is how many images of one list are looked at, which may be another one each
	// time it is asked for.
	maxChosen = 64
	// reserve is what a download leaves free on the disk.
	reserve = 64 << 20
)

// Source is where images are fetched from.
type Source struct {
	// URL is that of the images of a stream at an edge, with http or https
	// (http://host/v1/streams/bank/images), of a directory of images anywhere that
	// files are served from (https://bucket/path/bank, file:///mnt/images/bank),
	// which has images.json, or of one image there, whose last part is its name
	// (https://host/path/image-1-4711): files manifest and rows below it are all
	// that is asked for then.
	URL string
	// Stream is the stream that the image must be of; zero for any.
	Stream millrace.StreamID
	// Trusted are the keys that must have signed the header of the image's last
	// record; nil asks for none.
	Trusted *millrace.Keyring
	// Accept may refuse an image by its manifest, before its rows come: then the next
	// older one is looked at. It may be nil.
	Accept func(*Manifest) error
	// Keep is how many images stay in the directory, that one among them; 0 keeps
	// all.
	Keep int
	// Client asks; nil for one of its own.
	Client *http.Client
	// Progress is called now and then, with Bytes of those that are to come; it may
	// be nil.
	Progress func(Progress)
	// Pause is how long the first pause after a failure is, which the next ones
	// double. Default 1 second.
	Pause time.Duration

	// least and within are set by tests in place of leastBytes and leastTime.
	least  int64
	within time.Duration
}

// Fetch downloads an image into a directory of images: that of the URL or, of
// several, the newest. It appears there when it is whole, every frame's hash
// compared; that its rows are what a store may hold is seen when it is verified or
// restored. What was downloaded of it before an interruption, or the death of the
// process, is not downloaded again. Of an image that is there, nothing is fetched.
func Fetch(ctx context.Context, dir string, from Source) (*Created, error) {
	at, err := url.Parse(from.URL)
	if err != nil || !usable(at) {
		return nil, errors.New("fetch image: what it is to be fetched from is not a URL with http or https and a host, nor file:// with a path")
	}
	if from.Keep < 0 {
		return nil, fmt.Errorf("fetch image: %d images to keep is out of range", from.Keep)
	}
	if from.Progress == nil {
		from.Progress = func(Progress) {}
	}
	if from.Pause == 0 {
		from.Pause = time.Second
	}
	if from.within == 0 {
		from.least, from.within = leastBytes, leastTime
	}
	if from.Client == nil {
		from.Client = NewClient()
		defer from.Client.CloseIdleConnections()
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, fmt.Errorf("fetch image: %w", err)
	}
	f := &fetcher{Source: &from, at: at, dir: dir, window: time.Now(), refused: make(map[string]error), chosen: make(map[string]bool)}
	c, err := f.retry(ctx)
	if err == nil {
		c.Removed, err = prune(dir, from.Keep, c.Path)
	}
	if err == nil {
		err = writeListing(dir)
	}
	if err = errors.Join(err, lock.Close()); err != nil {
		return nil, fmt.Errorf("fetch image from %s: %w", shown(at), err)
	}
	return c, nil
}

// usable reports whether images can be fetched from a URL.
func usable(at *url.URL) bool {
	switch at.Scheme {
	case "http", "https":
		return at.Host != ""
	case "file":
		return (at.Host == "" || at.Host == "localhost") && path.IsAbs(at.Path)
	}
	return false
}

// NewClient returns a client that takes files as they are, also those of this host
// (file:///path).
func NewClient() *http.Client {
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, DisableCompression: true, ResponseHeaderTimeout: time.Minute, TLSHandshakeTimeout: 10 * time.Second}
	transport.RegisterProtocol("file", http.NewFileTransport(http.Dir("/")))
	return &http.Client{Transport: transport}
}

// fetcher downloads one image.
type fetcher struct {
	*Source
	at  *url.URL
	dir string
	// came is how many bytes of rows have come in all.
	came int64
	// window is when it was last looked whether they come as fast as they have to, over all
	// connections, then how many there were then, and slow how often in a row they did not.
	window time.Time
	then   int64
	slow   int
	// listed tells that the image was chosen from a list: where it is gone, the
	// list has another one by now.
	listed bool
	// refused are the images that were not accepted, chosen all that were looked at.
	refused map[string]error
	chosen  map[string]bool
}

// errRefused ends an attempt at an image that was not accepted.
var errRefused = errors.New("the image was not accepted")

// finalError ends a download: another try would come to the same.
type finalError struct{ err error }

func (e *finalError) Error() string { return e.err.Error() }
func (e *finalError) Unwrap() error { return e.err }

func final(err error) error { return &finalError{err} }

// shown is a URL without what may be secret in it.
func shown(at *url.URL) string {
	u := *at
	u.User, u.RawQuery = nil, ""
	return u.String()
}

// retry tries until an image is there, or tries have failed without coming further.
func (f *fetcher) retry(ctx context.Context) (*Created, error) {
	if err := sweep(f.dir); err != nil {
		return nil, err
	}
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval = f.Pause
	for failed := 1; ; failed++ {
		before := f.came
		c, err := f.once(ctx)
		if err == nil {
			return c, nil
		}
		if errors.Is(err, errRefused) && ctx.Err() == nil {
			failed--
			continue // with the next one
		}
		if f.came > before {
			failed = 1
			pause.Reset()
		}
		f.measure()
		var end *finalError
		if errors.As(err, &end) || ctx.Err() != nil || failed == tries || f.slow == tries {
			return nil, err
		}
		timer := time.NewTimer(pause.NextBackOff())
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, errors.Join(err, ctx.Err())
		case <-timer.C:
		}
	}
}

// measure counts how often in a row rows have not come as fast as they have to.
func (f *fetcher) measure() {
	took := time.Since(f.window)
	if took < f.within {
		return
	}
	f.slow++
	if float64(f.came-f.then) >= float64(f.least)*took.Seconds()/f.within.Seconds() {
		f.slow = 0
	}
	f.window, f.then = time.Now(), f.came
}

// once finds out which image is to be had and downloads what is missing of it.
func (f *fetcher) once(ctx context.Context) (*Created, error) {
	at, name, err := f.choose(ctx)
	if err != nil {
		return nil, err
	}
	whole := filepath.Join(f.dir, name)
	if i, err := Open(whole); err == nil {
		if err := f.accept(name, i.Manifest()); err != nil {
			return nil, errors.Join(err, i.Close())
		}
		return &Created{Path: whole, Manifest: i.Manifest(), Existed: true}, errors.Join(os.RemoveAll(whole+loadSuffix), i.Close())
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, final(fmt.Errorf("there is one of the same name, and it is not whole; mend: remove it: %w", err))
	}
	text, err := f.ask(ctx, at.JoinPath(manifestName), MaxManifest)
	if err != nil {
		return nil, err
	}
	m, err := DecodeManifest(text)
	if err != nil {
		return nil, final(err)
	}
	if m.Name() != name {
		return nil, final(malformed("%s holds image %s", shown(at), m.Name()))
	}
	if err := f.accept(name, m); err != nil {
		return nil, err
	}
	part := whole + loadSuffix
	have, err := f.prepare(ctx, part, text, m)
	if err != nil {
		return nil, err
	}
	if err := f.rows(ctx, at.JoinPath(rowsName), filepath.Join(part, rowsName), m, have); err != nil {
		return nil, err
	}
	failpoint.Hit("image_fetched")
	if err = syncDir(part); err == nil {
		if err = os.Rename(part, whole); err == nil {
			err = syncDir(f.dir)
		}
	}
	if err != nil {
		return nil, final(err)
	}
	return &Created{Path: whole, Manifest: m}, nil
}

// accept refuses an image of another stream, one that is not proven, and one that the
// caller does not want.
func (f *fetcher) accept(name string, m *Manifest) error {
	if id := m.Checkpoint.Stream; !f.Stream.IsZero() && id != f.Stream {
		return final(fmt.Errorf("it is of stream %v, wanted is %v; mend: name the images of that stream", id, f.Stream))
	}
	if err := m.Proven(f.Trusted); err != nil {
		return final(err)
	}
	if f.Accept == nil {
		return nil
	}
	err := f.Accept(m)
	if err == nil {
		return nil
	}
	f.refused[name] = err
	if !f.listed {
		return final(err)
	}
	return errRefused
}

// ask reads a whole answer that is not longer than most.
func (f *fetcher) ask(ctx context.Context, at *url.URL, most int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	r, err := f.get(ctx, at, 0)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(r.Body, most+1))
	if err = errors.Join(err, r.Body.Close()); err != nil {
		return nil, err
	}
	if int64(len(text)) > most {
		return nil, final(malformed("the answer of %s has more than %d bytes", shown(at), most))
	}
	return text, nil
}

// get asks for a file from an offset on.
func (f *fetcher) get(ctx context.Context, at *url.URL, offset int64) (*http.Response, error) {
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return nil, final(err)
	}
	want := http.StatusOK
	if offset > 0 {
		want = http.StatusPartialContent
		q.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	r, err := f.Client.Do(q)
	if err != nil {
		// The client's error has the whole URL.
		var whole *url.Error
		if errors.As(err, &whole) {
			err = whole.Err
		}
		return nil, fmt.Errorf("get %s: %w", shown(at), err)
	}
	var begins int64
	if r.StatusCode == http.StatusPartialContent {
		if _, err := fmt.Sscanf(r.Header.Get("Content-Range"), "bytes %d-", &begins); err != nil {
			begins = -1
		}
	}
	if r.StatusCode == want && begins == offset {
		return r, nil
	}
	text, _ := io.ReadAll(io.LimitReader(r.Body, 300)) // for a person
	err = errors.Join(fmt.Errorf("%s answers %s: %.300q", shown(at), r.Status, text), r.Body.Close())
	if f.listed && r.StatusCode == http.StatusNotFound || r.StatusCode >= 500 || r.StatusCode == http.StatusTooManyRequests || r.StatusCode == http.StatusRequestTimeout {
		return nil, err
	}
	return nil, final(err)
}

// prepare makes the directory of an image that comes, or takes up one that has
// come in part, and returns how many of its frames are there and right.
func (f *fetcher) prepare(ctx context.Context, part string, text []byte, m *Manifest) (have int, err error) {
	if old, err := readManifest(filepath.Join(part, manifestName)); err != nil || string(old) != string(text) {
		if err := os.RemoveAll(part); err != nil {
			return 0, final(err)
		}
		if err := os.Mkdir(part, 0o700); err != nil {
			return 0, final(err)
		}
		if err := writeSynced(filepath.Join(part, manifestName), text); err != nil {
			return 0, final(err)
		}
	}
	rows, err := os.OpenFile(filepath.Join(part, rowsName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return 0, final(err)
	}
	var right int64
	b := bufio.NewReaderSize(rows, 1<<20)
	var stored []byte
	for have < len(m.Frames) && ctx.Err() == nil {
		fr := &m.Frames[have]
		if stored, err = readFrame(b, fr, stored); err != nil {
			break // from here on it comes again
		}
		right += int64(fr.Stored)
		have++
	}
	err = errors.Join(ctx.Err(), rows.Truncate(right), rows.Close())
	if err != nil {
		return 0, final(err)
	}
	var disk syscall.Statfs_t
	if err := syscall.Statfs(f.dir, &disk); err == nil {
		if free, need := disk.Bavail*uint64(disk.Bsize), uint64(m.Stored()-right); need+reserve > free {
			return 0, final(fmt.Errorf("%d bytes are to come, and %d are free; mend: free space on the disk of %s", need, free, f.dir))
		}
	}
	return have, nil
}

// readFrame reads a frame as it is stored, and compares its hash.
func readFrame(r io.Reader, f *Frame, buf []byte) ([]byte, error) {
	if cap(buf) < f.Stored {
		buf = make([]byte, f.Stored)
	}
	buf = buf[:f.Stored]
	if _, err := io.ReadFull(r, buf); err != nil {
		return buf, err
	}
	return buf, f.checkSum(buf)
}

// rows downloads the frames from one on.
func (f *fetcher) rows(ctx context.Context, at *url.URL, path string, m *Manifest, have int) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return final(err)
	}
	err = f.frames(ctx, at, file, m, have)
	if err == nil {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}

func (f *fetcher) frames(ctx context.Context, at *url.URL, file *os.File, m *Manifest, have int) error {
	p := Progress{Of: m.Rows(), OfBytes: m.Stored()}
	var offset int64
	for i := range m.Frames[:have] {
		p.Rows += m.Frames[i].Rows
		offset += int64(m.Frames[i].Stored)
	}
	p.Bytes = offset
	f.Progress(p)
	if have == len(m.Frames) {
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	alive := time.AfterFunc(silence, func() { cancel(fmt.Errorf("%s answers nothing for %v", shown(at), silence)) })
	r, err := f.get(ctx, at, offset)
	if !alive.Stop() {
		<-ctx.Done() // the cause comes
	}
	if err = cmp.Or(context.Cause(ctx), err); err != nil {
		return err
	}
	defer func() { _ = r.Body.Close() }() // what was read of it was compared
	alive = time.AfterFunc(f.within, func() {
		cancel(fmt.Errorf("%s sends too little: less than %d bytes have come in %v", shown(at), f.least, f.within))
	})
	defer alive.Stop()
	body := bufio.NewReaderSize(&pacedReader{r: r.Body, least: f.least, alive: func() { alive.Reset(f.within) }}, 1<<20)
	var stored []byte
	for i := have; i < len(m.Frames); i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		if stored, err = readFrame(body, &m.Frames[i], stored); err != nil {
			return fmt.Errorf("frame %d of %s: %w", i, shown(at), cmp.Or(context.Cause(ctx), err))
		}
		if _, err := file.Write(stored); err != nil {
			return final(err)
		}
		failpoint.Hit("image_frame_fetched")
		f.came += int64(len(stored))
		p.Rows += m.Frames[i].Rows
		p.Bytes += int64(len(stored))
		f.Progress(p)
	}
	return nil
}

// pacedReader calls alive whenever least bytes have come.
type pacedReader struct {
	r     io.Reader
	least int64
	alive func()
	since int64
}

func (p *pacedReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	if p.since += int64(n); p.since >= p.least {
		p.since = 0
		p.alive()
	}
	return n, err
}
