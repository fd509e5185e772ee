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

// SignedHeader returns what proves who wrote the record's header, without its payload:
// the signed part, the key's ID and the signature. It is nil for a record that is not
// signed. It must be called before the bytes that the record was decoded from change,
// and does not alias them.
func (r *Record) SignedHeader() []byte {
	if len(r.Signature) == 0 {
		return nil
	}
	b := make([]byte, 0, len(r.signed)+signatureSize)
	b = append(b, r.signed...)
	b = append(b, r.KeyID[:]...)
	return append(b, r.Signature...)
}

// DecodeSignedHeader reads what SignedHeader gave. The record has no payload, and only
// Keyring.Check or VerifySignature tells whether its header is to be believed: until
// then it may be anything. It aliases b.
func DecodeSignedHeader(b []byte) (*Record, error) {
	h, err := DecodeHeader(b)
	if err != nil {
		return nil, err
	}
	end := signedSize + int(binary.BigEndian.Uint16(b[6:]))
	if len(b) != end+signatureSize {
		return nil, fmt.Errorf("%w: signed header of %d bytes, want %d", ErrMalformed, len(b), end+signatureSize)
	}
	r := &Record{Header: *h, signed: b[:end:end]}
	copy(r.KeyID[:], b[end:])
	r.Signature = b[end+len(r.KeyID):]
	return r, nil
}

// Proves returns nil where the record is the batch that ends at a checkpoint, with its
// chain: then who signed it vouches for the history up to there. Otherwise it returns
// ErrDiverged.
func (r *Record) Proves(c *Checkpoint) error {
	if r.Kind != RecordBatch || r.Stream != c.Stream || r.Epoch != c.Epoch || r.Count == 0 || r.Last() != c.Index || r.Chain != c.Chain ||
		r.Term != c.Term || r.Publisher != c.Publisher {
		return fmt.Errorf("%w: the signed header is that of a %v record of stream %v, epoch %v, term %v, up to index %v with chain %v, and the checkpoint says stream %v, epoch %v, term %v, index %v, chain %v",
			ErrDiverged, r.Kind, r.Stream, r.Epoch, r.Term, r.Last(), r.Chain.Short(), c.Stream, c.Epoch, c.Term, c.Index, c.Chain.Short())
	}
	return nil
}
