package image

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-db/millrace"
)

const (
	// writeLimit is how long a client may take for what one write gives it.
	writeLimit = time.Minute
	// maxSending is how many files are sent at once; further requests are told to
	// come again.
	maxSending = 4
)

// Handler serves the images in a directory: at its root a Listing, below that
// image-<epoch>-<index>/manifest and …/rows, also in ranges. It is safe for
// concurrent use. Whoever can reach it can read all rows.
//
// POST at its root, of type application/json, asks maker for a new image; nil makes
// none.
func Handler(dir string, maker *Maker) http.Handler {
	return &handler{dir: dir, maker: maker, sending: make(chan struct{}, maxSending)}
}

type handler struct {
	dir     string
	maker   *Maker
	sending chan struct{}
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, file, ok := strings.Cut(strings.Trim(r.URL.Path, "/"), "/")
	if r.Method == http.MethodPost && name == "" && h.maker != nil {
		h.ask(w, r)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		refuse(w, http.StatusMethodNotAllowed, "wrong_method", "the method is "+r.Method, "use GET")
		return
	}
	if name == "" {
		h.list(w)
		return
	}
	if _, _, valid := parseName(name); !ok || !valid || file != manifestName && file != rowsName {
		refuse(w, http.StatusNotFound, "no_route", "there is nothing at "+r.URL.Path, "ask for the list, or for IMAGE/manifest and IMAGE/rows")
		return
	}
	select {
	case h.sending <- struct{}{}:
		defer func() { <-h.sending }()
	default:
		w.Header().Set("Retry-After", "5")
		refuse(w, http.StatusServiceUnavailable, "busy", "as many files are being sent as are sent at once", "try again")
		return
	}
	f, err := os.Open(filepath.Join(h.dir, name, file))
	if err != nil {
		refuse(w, http.StatusNotFound, "no_image", "there is no image "+name, "ask for the list")
		return
	}
	defer func() { _ = f.Close() }() // only read from
	info, err := f.Stat()
	if err != nil {
		refuse(w, http.StatusInternalServerError, "failed", err.Error(), "look at the edge's disk")
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	http.ServeContent(&patient{ResponseWriter: w, control: http.NewResponseController(w)}, r, "", info.ModTime(), f)
}

func (h *handler) list(w http.ResponseWriter) {
	l, err := listing(h.dir)
	if err != nil {
		refuse(w, http.StatusInternalServerError, "failed", err.Error(), "look at the edge's disk")
		return
	}
	if h.maker != nil {
		l.Making = h.maker.Making()
	}
	answer(w, http.StatusOK, l)
}

// maxWanted is the largest size of a Wanted.
const maxWanted = 1 << 10

// ask has an image made, unless there is one that is new enough.
func (h *handler) ask(w http.ResponseWriter, r *http.Request) {
	// A page in a browser cannot send this type to another host by itself.
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		refuse(w, http.StatusUnsupportedMediaType, "bad_type", "the request is not of type application/json", "send {} with Content-Type: application/json")
		return
	}
	var wanted Wanted
	if err := json.NewDecoder(io.LimitReader(r.Body, maxWanted)).Decode(&wanted); err != nil {
		refuse(w, http.StatusBadRequest, "bad_request", "the request is not what says which image is wanted: "+err.Error(), `send {}, or {"epoch": 1, "newer_than": 4711}`)
		return
	}
	fresh, err := h.maker.Ask(millrace.Place{Epoch: millrace.Epoch(wanted.Epoch), Index: millrace.Index(wanted.NewerThan)})
	switch {
	case errors.Is(err, ErrBusy):
		w.Header().Set("Retry-After", strconv.Itoa(int(busyPause.Seconds())))
		refuse(w, http.StatusServiceUnavailable, "busy", err.Error(), "ask again later, or ask another edge")
		return
	case err != nil:
		refuse(w, http.StatusConflict, "failed", err.Error(), "ask another edge, and look at the log of this one")
		return
	}
	l, err := listing(h.dir)
	if err != nil {
		refuse(w, http.StatusInternalServerError, "failed", err.Error(), "look at the edge's disk")
		return
	}
	l.Making = h.maker.Making()
	status := http.StatusAccepted
	if fresh {
		status = http.StatusOK
	}
	answer(w, status, l)
}

func refuse(w http.ResponseWriter, status int, code, message, mend string) {
	type fault struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Mend    string `json:"mend"`
	}
	answer(w, status, map[string]fault{"error": {code, message, mend}})
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // a client that went away wants no more of it
}

// patient gives each write its own time, where the server bounds that of the whole
// answer: files are large, and a client that takes nothing is still let go.
type patient struct {
	http.ResponseWriter
	control *http.ResponseController
}

func (p *patient) Write(b []byte) (int, error) {
	// A writer that knows no deadlines, as in a test, needs none.
	_ = p.control.SetWriteDeadline(time.Now().Add(writeLimit))
	return p.ResponseWriter.Write(b)
}
