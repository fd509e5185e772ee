package edge

import (
	"fmt"
	"math"
	"sync"
	"syscall"
	"time"
)

// Space says how much room a store takes and has.
type Space struct {
	// File is what the pages of the store take, in use or free, in bytes; Map the
	// most that they may take, and Disk what is free for more of them on the
	// disk.
	File, Map, Disk int64
	// Growth is by how much File has grown, in bytes a second, over the last hour
	// or since the store was opened; 0 in the first minute.
	Growth float64
	// FullIn is when map or disk is full at that rate; 0 if it does not grow.
	FullIn time.Duration
	// Alarm says what will keep the store from being written, and what mends it;
	// empty if nothing does.
	Alarm string
}

const (
	// spaceEvery is how often the room is looked at, spaceSamples of how many
	// times the growth is taken, spaceLeast after how long.
	spaceEvery   = 10 * time.Second
	spaceSamples = 360
	spaceLeast   = time.Minute
	// fullSoon is how near the end has to be for an alarm, where more than half of
	// the room is gone: the first copy fills a store faster than changes do.
	fullSoon = 24 * time.Hour
	// littleMap and littleDisk are the part of the map, and the bytes on the disk,
	// that are too little at any rate.
	littleMap  = 10
	littleDisk = 256 << 20
)

// spaceWatch keeps what the room was over the last hour.
type spaceWatch struct {
	mu      sync.Mutex
	now     Space
	samples []spaceSample
}

type spaceSample struct {
	at   time.Time
	file int64
}

// look takes a sample and returns the room, and whether the alarm is news.
func (w *spaceWatch) look(at time.Time, file, mapSize, disk int64) (now Space, news bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.samples = append(w.samples, spaceSample{at, file})
	if n := len(w.samples) - spaceSamples; n > 0 {
		w.samples = append(w.samples[:0], w.samples[n:]...)
	}
	old := w.samples[0]
	now = Space{File: file, Map: mapSize, Disk: disk}
	if age := at.Sub(old.at); age >= spaceLeast {
		now.Growth = float64(file-old.file) / age.Seconds()
	}
	now.judge()
	news = (now.Alarm == "") != (w.now.Alarm == "")
	w.now = now
	return now, news
}

// judge says what follows from sizes and rate.
func (s *Space) judge() {
	left := min(s.Map-s.File, s.Disk)
	ofMap := s.Map-s.File <= s.Disk
	if s.Growth > 0 {
		s.FullIn = time.Duration(min(float64(max(left, 0))/s.Growth*float64(time.Second), math.MaxInt64/2))
	}
	what := fmt.Sprintf("%d bytes are free on the disk", s.Disk)
	mend := "free space on the disk, or millrace edge compact"
	if ofMap {
		what = fmt.Sprintf("%d of map_size's %d bytes are taken", s.File, s.Map)
		mend = "millrace edge compact, or raise edge.map_size and restart the edge"
	}
	switch {
	case s.Map-s.File < s.Map/littleMap, s.Disk < littleDisk:
		s.Alarm = fmt.Sprintf("the store is nearly full: %s; mend: %s", what, mend)
	case s.FullIn > 0 && s.FullIn < fullSoon && s.File > left:
		s.Alarm = fmt.Sprintf("the store is full in %v at the rate of the last hour: %s; mend: %s", s.FullIn.Round(time.Minute), what, mend)
	}
}

// Space returns how much room the store takes and has, as of a few seconds ago.
func (s *Store) Space() Space {
	s.space.mu.Lock()
	defer s.space.mu.Unlock()
	return s.space.now
}

// lookAtSpace brings Space up to date.
func (s *Store) lookAtSpace(at time.Time) {
	file, _, err := s.fullSize()
	if err != nil {
		s.log.Error("look at the room of a store", "dir", s.dir, "error", err)
		return
	}
	now, news := s.space.look(at, file, s.mapSize(), int64(min(s.diskFree(), math.MaxInt64)))
	if !news || s.opts.ReadOnly {
		return
	}
	if now.Alarm == "" {
		s.log.Info("the store has room again", "dir", s.dir, "file", now.File, "map", now.Map, "disk_free", now.Disk)
		return
	}
	s.log.Warn(now.Alarm, "dir", s.dir, "file", now.File, "map", now.Map, "disk_free", now.Disk, "bytes_per_second", now.Growth)
}

// diskFree returns the bytes by which the store's file may grow: what is free on
// its disk, and what the limit on the size of files leaves.
func (s *Store) diskFree() uint64 {
	free := uint64(math.MaxUint64)
	var st syscall.Statfs_t
	if err := syscall.Statfs(s.dir, &st); err == nil {
		free = st.Bavail * uint64(st.Bsize)
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit); err == nil && limit.Cur < math.MaxInt64 {
		size, _, err := s.fullSize()
		if err == nil {
			free = min(free, uint64(max(0, int64(limit.Cur)-size)))
		}
	}
	return free
}
