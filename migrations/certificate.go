package migrations

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/millrace-db/millrace"
)

// Certificate says what a verification has found.
type Certificate struct {
	// Equal says that every range of every table was equal at the index at which it
	// was compared, and that the target's foreign keys hold.
	Equal bool `json:"equal"`
	// Index is where the changes stood when it was done; what was equal before has been
	// equal to the source at each index since, as long as nobody else writes at the
	// target. Chain, in hex, is the chain of hashes over all changes up to there, Position where it
	// is at the source.
	Index    string           `json:"index"`
	Chain    string           `json:"chain"`
	Position string           `json:"position"`
	Tables   []CertifiedTable `json:"tables"`
	// ForeignKeys are those of the target that rows violate.
	ForeignKeys []string  `json:"foreign_keys,omitempty"`
	CheckedAt   time.Time `json:"checked_at"`
}

// CertifiedTable is what it found of one table.
type CertifiedTable struct {
	Table string `json:"table"`
	// Ranges are those that were compared, Rows what they have at the source. Hash, in
	// hex, is the sum of the hashes of these rows (millrace.VerifySum), each range at the
	// index at which it was compared.
	Ranges int64  `json:"ranges"`
	Rows   int64  `json:"rows"`
	Hash   string `json:"hash"`
	// Carried are ranges that were known to be equal when verification was asked for,
	// and were not read again, since no change had gone into them.
	Carried int64 `json:"carried_forward"`
	// Changed are ranges into which changes have gone since they were compared, or while
	// they were. Where there are none, Rows and Hash are those of the table at the
	// certificate's index.
	Changed int64 `json:"changed_since"`
	// Differing are how many ranges differ. FirstIndex and LastIndex are where they
	// were compared.
	Differing  int64             `json:"differing"`
	FirstIndex string            `json:"first_index"`
	LastIndex  string            `json:"last_index"`
	Found      []json.RawMessage `json:"found,omitempty"`
}

// add adds a range; sum is the table's.
func (t *CertifiedTable) add(rows int64, hash []byte, index string, sum *millrace.VerifySum) error {
	if len(hash) != 16 {
		return fmt.Errorf("read what verification found: a sum of %s has %d bytes", t.Table, len(hash))
	}
	t.Ranges++
	t.Rows += rows
	sum.AddHash(millrace.RowHash{Hi: binary.BigEndian.Uint64(hash[:8]), Lo: binary.BigEndian.Uint64(hash[8:])})
	all := sum.Sum()
	t.Hash = hex.EncodeToString(all[:])
	at, err := millrace.ParseIndex(index)
	if err != nil {
		return err
	}
	first, err := millrace.ParseIndex(t.FirstIndex)
	if err != nil {
		return err
	}
	last, err := millrace.ParseIndex(t.LastIndex)
	if err != nil {
		return err
	}
	t.FirstIndex, t.LastIndex = min(first, at).String(), max(last, at).String()
	return nil
}
