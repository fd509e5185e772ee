package edge

import "bytes"

// find looks for the value under a key as LMDB does, without looking at more of the pages
// than it needs to stay within them. What it finds is believed by its checksum, and that
// it finds nothing is not: the key may be there all the same.
func (m *memoryMap) find(t *tree, key []byte) (value []byte, found bool) {
	page := t.start
	for depth := t.depth; depth > 0; depth-- {
		b, err := m.read(page, 1)
		if err != nil {
			return nil, false
		}
		want, lo := uint16(pageLeaf), 0
		if depth > 1 {
			want, lo = pageBranch, 1 // the first key of a branch page is not used
		}
		lower := int(order.Uint16(b[12:]))
		if order.Uint64(b) != page || order.Uint16(b[10:])&pageKinds != want || lower < pageHeader || lower > len(b) {
			return nil, false
		}
		hi := (lower - pageHeader) / 2
		exact := -1
		for lo < hi {
			mid := (lo + hi) / 2
			node := nodeAt(b, mid)
			if node == nil {
				return nil, false
			}
			c := bytes.Compare(node[nodeHeader:nodeHeader+int(order.Uint16(node[6:]))], key)
			if c == 0 {
				exact = mid
				break
			}
			if c < 0 {
				lo = mid + 1
			} else {
				hi = mid
			}
		}
		if depth == 1 {
			if exact < 0 {
				return nil, false
			}
			return nodeValue(nodeAt(b, exact))
		}
		if exact < 0 {
			exact = lo - 1
		}
		node := nodeAt(b, exact)
		if node == nil {
			return nil, false
		}
		page = uint64(order.Uint16(node)) | uint64(order.Uint16(node[2:]))<<16 | uint64(order.Uint16(node[4:]))<<32
	}
	return nil, false
}

// nodeAt returns the page from an item on, which lies within it with its header and key,
// or nil.
func nodeAt(page []byte, i int) []byte {
	at := pageHeader + 2*i
	if at+2 > len(page) {
		return nil
	}
	at = int(order.Uint16(page[at:]))
	if at+nodeHeader > len(page) || at+nodeHeader+int(order.Uint16(page[at+6:])) > len(page) {
		return nil
	}
	return page[at:]
}

// nodeValue returns the value of an item of a leaf page, if it lies in the page.
func nodeValue(node []byte) ([]byte, bool) {
	size := int(order.Uint16(node)) | int(order.Uint16(node[2:]))<<16
	from := nodeHeader + int(order.Uint16(node[6:]))
	if order.Uint16(node[4:]) != 0 || size > len(node)-from {
		return nil, false
	}
	return node[from : from+size : from+size], true
}
