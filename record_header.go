package millrace

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// HeaderRoom is how many bytes of a record's stored form DecodeHeader needs besides
// its position.
const HeaderRoom = signedSize

// DecodeHeader reads the header alone of a record's stored form, of which b may be
// the beginning: what stands before the payload, without KeyID and Signature. It
// checks no CRC, so its answer is to be believed only where something else holds the
// bytes together. The result does not alias b.
func DecodeHeader(b []byte) (*Header, error) {
	if len(b) < signedSize || !bytes.Equal(b[:3], recordMagic[:]) || b[3] != recordVersion {
		return nil, fmt.Errorf("%w: %d bytes do not begin as a record of millrace of version %d", ErrMalformed, len(b), recordVersion)
	}
	transport := signedSize + int(binary.BigEndian.Uint16(b[6:]))
	if len(b) < transport {
		return nil, fmt.Errorf("%w: record is cut off", ErrMalformed)
	}
	var r Record
	if err := r.decodeSigned(b, transport); err != nil {
		return nil, err
	}
	return &r.Header, nil
}
