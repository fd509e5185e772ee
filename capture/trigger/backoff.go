package trigger

import "time"

// backoff says how long to wait before the source is asked again. After something
// came it is asked at once, then after the shortest pause; each time that nothing
// comes the pause doubles, up to the longest.
type backoff struct {
	shortest, longest time.Duration
	pause             time.Duration
}

// came notes that something came.
func (b *backoff) came() { b.pause = 0 }

// next returns the pause to make now.
func (b *backoff) next() time.Duration {
	pause := b.pause
	b.pause = min(max(2*pause, b.shortest), b.longest)
	return max(pause, min(b.shortest, b.longest))
}
