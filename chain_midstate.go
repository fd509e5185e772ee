package millrace

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// midstate is BLAKE3 stopped in the middle: what it has made of the bytes so far,
// in a form that another process can go on from. A relay that left the entries of a
// table out, and now has to send further ones of the same unit, sends it in the place
// of those left out. The library that hashes everything else keeps its state to
// itself, so the hash is written out here; it is used for units that span batches and
// nothing else.
//
// The bytes are cut into chunks of 1,024. A chunk is hashed when a byte of the next
// one comes, because the last one is hashed in another way; so the state is the
// chaining values of the whole subtrees to the left, one for each bit that is set in
// the number of chunks hashed, and the bytes of the chunk at hand.
type midstate struct {
	chunks uint64
	stack  [][8]uint32
	chunk  [chunkSize]byte
	used   int
}

const (
	chunkSize = 1024
	blockSize = 64

	flagChunkStart = 1
	flagChunkEnd   = 2
	flagParent     = 4
	flagRoot       = 8
)

var blakeIV = [8]uint32{0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19}

// blakeOrder is where the words of a block stand in each of the seven rounds.
var blakeOrder = [7][16]uint8{
	{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
	{2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8},
	{3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1},
	{10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6},
	{12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4},
	{9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7},
	{11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13},
}

// blakeCompress takes a block into a chaining value. The result is the first half of
// the output, which is all that a hash of 32 bytes needs.
func blakeCompress(cv *[8]uint32, m *[16]uint32, counter uint64, size, flags uint32) [8]uint32 {
	v0, v1, v2, v3 := cv[0], cv[1], cv[2], cv[3]
	v4, v5, v6, v7 := cv[4], cv[5], cv[6], cv[7]
	v8, v9, v10, v11 := blakeIV[0], blakeIV[1], blakeIV[2], blakeIV[3]
	v12, v13, v14, v15 := uint32(counter), uint32(counter>>32), size, flags
	for r := range blakeOrder {
		s := &blakeOrder[r]
		v0, v4, v8, v12 = blakeMix(v0, v4, v8, v12, m[s[0]&15], m[s[1]&15])
		v1, v5, v9, v13 = blakeMix(v1, v5, v9, v13, m[s[2]&15], m[s[3]&15])
		v2, v6, v10, v14 = blakeMix(v2, v6, v10, v14, m[s[4]&15], m[s[5]&15])
		v3, v7, v11, v15 = blakeMix(v3, v7, v11, v15, m[s[6]&15], m[s[7]&15])
		v0, v5, v10, v15 = blakeMix(v0, v5, v10, v15, m[s[8]&15], m[s[9]&15])
		v1, v6, v11, v12 = blakeMix(v1, v6, v11, v12, m[s[10]&15], m[s[11]&15])
		v2, v7, v8, v13 = blakeMix(v2, v7, v8, v13, m[s[12]&15], m[s[13]&15])
		v3, v4, v9, v14 = blakeMix(v3, v4, v9, v14, m[s[14]&15], m[s[15]&15])
	}
	return [8]uint32{v0 ^ v8, v1 ^ v9, v2 ^ v10, v3 ^ v11, v4 ^ v12, v5 ^ v13, v6 ^ v14, v7 ^ v15}
}

func blakeMix(a, b, c, d, x, y uint32) (na, nb, nc, nd uint32) {
	a += b + x
	d = bits.RotateLeft32(d^a, -16)
	c += d
	b = bits.RotateLeft32(b^c, -12)
	a += b + y
	d = bits.RotateLeft32(d^a, -8)
	c += d
	b = bits.RotateLeft32(b^c, -7)
	return a, b, c, d
}

// blakeChunk hashes a chunk of 1 to 1,024 bytes, or of none where it is all there is.
func blakeChunk(b []byte, counter uint64, flags uint32) [8]uint32 {
	cv := blakeIV
	start := uint32(flagChunkStart)
	for len(b) > blockSize {
		m := blakeWords(b[:blockSize])
		cv = blakeCompress(&cv, &m, counter, blockSize, start)
		b, start = b[blockSize:], 0
	}
	var last [blockSize]byte
	copy(last[:], b)
	m := blakeWords(last[:])
	return blakeCompress(&cv, &m, counter, uint32(len(b)), start|flagChunkEnd|flags)
}

func blakeParent(left, right *[8]uint32, flags uint32) [8]uint32 {
	var m [16]uint32
	copy(m[:8], left[:])
	copy(m[8:], right[:])
	cv := blakeIV
	return blakeCompress(&cv, &m, 0, blockSize, flagParent|flags)
}

func blakeWords(b []byte) (m [16]uint32) {
	for i := range m {
		m[i] = binary.LittleEndian.Uint32(b[4*i:])
	}
	return m
}

// write takes in more bytes.
func (s *midstate) write(p []byte) {
	for len(p) > 0 {
		if s.used == chunkSize {
			s.push(blakeChunk(s.chunk[:], s.chunks, 0))
			s.used = 0
		}
		for s.used == 0 && len(p) > chunkSize {
			s.push(blakeChunk(p[:chunkSize], s.chunks, 0))
			p = p[chunkSize:]
		}
		n := copy(s.chunk[s.used:], p)
		s.used += n
		p = p[n:]
	}
}

// push takes in the chaining value of a chunk that another one follows.
func (s *midstate) push(cv [8]uint32) {
	s.chunks++
	for n := s.chunks; n&1 == 0; n >>= 1 {
		top := len(s.stack) - 1
		cv = blakeParent(&s.stack[top], &cv, 0)
		s.stack = s.stack[:top]
	}
	s.stack = append(s.stack, cv)
}

// sum returns the hash of all bytes so far. More may follow.
func (s *midstate) sum() (out [32]byte) {
	root := uint32(flagRoot)
	if len(s.stack) > 0 {
		root = 0
	}
	cv := blakeChunk(s.chunk[:s.used], s.chunks, root)
	for i := len(s.stack) - 1; i >= 0; i-- {
		if i == 0 {
			root = flagRoot
		}
		cv = blakeParent(&s.stack[i], &cv, root)
	}
	for i, w := range cv {
		binary.LittleEndian.PutUint32(out[4*i:], w)
	}
	return out
}

func (s *midstate) reset() { s.chunks, s.stack, s.used = 0, s.stack[:0], 0 }

// maxMidstate is the largest stored form in bytes: a chaining value for each bit of
// the number of chunks in 2^63 bytes, and a whole chunk.
const maxMidstate = 8 + 53*32 + chunkSize

// append appends the stored form: the number of bytes so far, the chaining values
// from the left, the bytes of the chunk at hand.
func (s *midstate) append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint64(dst, s.chunks*chunkSize+uint64(s.used))
	for i := range s.stack {
		for _, w := range s.stack[i] {
			dst = binary.LittleEndian.AppendUint32(dst, w)
		}
	}
	return append(dst, s.chunk[:s.used]...)
}

// decode reads the stored form. It keeps nothing of b.
func (s *midstate) decode(b []byte) error {
	if len(b) < 8 || len(b) > maxMidstate {
		return fmt.Errorf("%w: state of a hash of %d bytes", ErrMalformed, len(b))
	}
	n := binary.BigEndian.Uint64(b)
	if n == 0 || n > 1<<63 {
		return fmt.Errorf("%w: state of a hash says %d bytes", ErrMalformed, n)
	}
	chunks := (n - 1) / chunkSize
	used, stack := int(n-chunks*chunkSize), bits.OnesCount64(chunks)
	if b = b[8:]; len(b) != 32*stack+used {
		return fmt.Errorf("%w: state of a hash of %d bytes says other lengths", ErrMalformed, len(b)+8)
	}
	s.reset()
	s.chunks, s.used = chunks, used
	for range stack {
		var cv [8]uint32
		for i := range cv {
			cv[i] = binary.LittleEndian.Uint32(b[4*i:])
		}
		s.stack = append(s.stack, cv)
		b = b[32:]
	}
	copy(s.chunk[:], b)
	return nil
}
