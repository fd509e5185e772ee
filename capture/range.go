package capture

import "bytes"

// KeyRange is a range of encoded keys: from Low on, up to High and without it. An empty
// Low is the beginning, an empty High the end of the table.
type KeyRange struct{ Low, High []byte }

// Holds reports whether an encoded key is in the range.
func (r KeyRange) Holds(key []byte) bool {
	return bytes.Compare(key, r.Low) >= 0 && (len(r.High) == 0 || bytes.Compare(key, r.High) < 0)
}
