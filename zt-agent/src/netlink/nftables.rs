//! Tables, chains and rules of nf_tables, as far as we use them: written in
//! transactions, and read back in the same types.
//!
//! Attributes: the kernel's `include/uapi/linux/netfilter/nf_tables.h`. Its
//! numbers are in network byte order; what is compared with a packet's mark is
//! in the machine's.

use super::{
    NetlinkError,
    message::{self, Attributes, Malformed, Message},
    socket::{Protocol, Reply, Socket},
};

const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const GET_TABLE: u16 = NEW_TABLE + 1;
const DELETE_TABLE: u16 = NEW_TABLE + 2;
const NEW_CHAIN: u16 = NEW_TABLE + 3;
const GET_CHAIN: u16 = NEW_TABLE + 4;
const NEW_RULE: u16 = NEW_TABLE + 6;
const GET_RULE: u16 = NEW_TABLE + 7;
const DELETE_RULE: u16 = NEW_TABLE + 8;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

/// `NLM_F_REQUEST`, `NLM_F_CREATE`, `NLM_F_APPEND`
const REQUEST: u16 = 1;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

/// Bytes of `struct nfgenmsg`.
const HEADER: usize = 4;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFTA_BITWISE_SREG: u16 = 1;
const NFTA_BITWISE_DREG: u16 = 2;
const NFTA_BITWISE_LEN: u16 = 3;
const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_BITWISE_XOR: u16 = 5;
const NFTA_BITWISE_OP: u16 = 6;
const NFTA_COUNTER_BYTES: u16 = 1;
const NFTA_COUNTER_PACKETS: u16 = 2;
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;

/// The register that expressions hand values on in, and that of the verdict.
const REGISTER: u32 = 1;
const VERDICT: u32 = 0;
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
const EQUAL: u32 = 0;
const META_MARK: u32 = 3;
const META_IIFNAME: u32 = 6;

/// Which packets a table is about: `NFPROTO_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet = 1,
    Arp = 3,
    Bridge = 7,
}

impl Family {
    /// As nft calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Arp => "arp",
            Self::Bridge => "bridge",
        }
    }
}

/// A chain that packets enter from a hook, and leave accepted if no rule says
/// otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    pub family: Family,
    pub table: &'static str,
    pub name: &'static str,
    /// The hook's number in the family.
    pub hook: u32,
    /// Lower is earlier.
    pub priority: i32,
}

/// One step of a rule; those that compare end the rule where it is not so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// Loads the name of the interface the packet came in by, 16 bytes.
    LoadInterface,
    /// Loads the packet's mark.
    LoadMark,
    /// Keeps the bits of a mask of the loaded number.
    And(u32),
    /// Compares as many bytes as there are here with the loaded ones.
    Equals(Vec<u8>),
    Count(Counter),
    Drop,
    /// What is none of these, by its name: not ours.
    Other(String),
}

/// What a rule counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    pub packets: u64,
    pub bytes: u64,
}

/// What there is of one chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Present {
    /// It is on its hook, in a table that is switched on, accepts by default.
    pub intact: bool,
    /// Its rules, in their order.
    pub rules: Vec<Vec<Expression>>,
}

/// Changes that become true all at once, or not at all.
#[derive(Debug, Default)]
pub struct Transaction {
    steps: Vec<Step>,
}

#[derive(Debug)]
struct Step {
    message: Message,
    family: Family,
    /// For people.
    what: String,
}

/// A transaction that was refused; nothing has changed.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub struct Failed {
    /// Whose step it was; none if it concerns all of it.
    pub family: Option<Family>,
    pub source: NetlinkError,
}

impl Transaction {
    /// Makes a table, or switches it on that is there.
    #[must_use]
    pub fn table(self, family: Family, name: &str) -> Self {
        let attributes = Attributes::new()
            .text(NFTA_TABLE_NAME, name)
            .be32(NFTA_TABLE_FLAGS, 0);
        let what = format!("table {} {name}", family.name());
        self.step(NEW_TABLE, CREATE, family, &attributes, what)
    }

    /// Deletes a table that is there, and everything in it.
    #[must_use]
    pub fn delete_table(self, family: Family, name: &str) -> Self {
        let attributes = Attributes::new().text(NFTA_TABLE_NAME, name);
        let what = format!("deleting the table {} {name}", family.name());
        self.step(DELETE_TABLE, 0, family, &attributes, what)
    }

    /// Makes a chain; one that is there on the same hook stays.
    #[must_use]
    pub fn chain(self, chain: &Chain) -> Self {
        let hook = Attributes::new()
            .be32(NFTA_HOOK_HOOKNUM, chain.hook)
            .be32(NFTA_HOOK_PRIORITY, chain.priority.cast_unsigned());
        let attributes = Attributes::new()
            .text(NFTA_CHAIN_TABLE, chain.table)
            .text(NFTA_CHAIN_NAME, chain.name)
            .nest(NFTA_CHAIN_HOOK, &hook)
            .be32(NFTA_CHAIN_POLICY, ACCEPT)
            .text(NFTA_CHAIN_TYPE, "filter");
        let what = format!("chain {} {}", chain.family.name(), chain.name);
        self.step(NEW_CHAIN, CREATE, chain.family, &attributes, what)
    }

    /// Deletes the rules of a chain.
    #[must_use]
    pub fn flush(self, chain: &Chain) -> Self {
        let what = format!("rules of {} {}", chain.family.name(), chain.name);
        self.step(DELETE_RULE, 0, chain.family, &of_chain(chain), what)
    }

    /// Appends a rule to a chain.
    #[must_use]
    pub fn rule(self, chain: &Chain, rule: &[Expression]) -> Self {
        let expressions = rule.iter().fold(Attributes::new(), |list, expression| {
            list.nest(NFTA_LIST_ELEM, &encode(expression))
        });
        let attributes = of_chain(chain).nest(NFTA_RULE_EXPRESSIONS, &expressions);
        let what = format!("rule of {} {}", chain.family.name(), chain.name);
        self.step(NEW_RULE, CREATE | APPEND, chain.family, &attributes, what)
    }

    /// Makes it true, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// What was refused first; nothing has changed then.
    pub fn commit(self) -> Result<(), Failed> {
        let frame = |kind| {
            let [high, low] = SUBSYSTEM.to_be_bytes();
            Message::new(kind, REQUEST, &[0, 0, high, low], &Attributes::new())
        };
        let steps = self.steps.iter().map(|step| step.message.clone());
        let messages: Vec<Message> = std::iter::once(frame(BATCH_BEGIN))
            .chain(steps)
            .chain([frame(BATCH_END)])
            .collect();
        let step = |index: usize| self.steps.get(index.checked_sub(1)?);
        let what = |index| {
            step(index)
                .map_or("transaction", |step| &step.what)
                .to_owned()
        };
        let failed = |(index, source)| Failed {
            family: step(index).map(|step| step.family),
            source,
        };
        Socket::open(Protocol::Netfilter)
            .map_err(|source| failed((0, source)))?
            .transact(&messages, what)
            .map_err(failed)
    }

    fn step(
        mut self,
        kind: u16,
        flags: u16,
        family: Family,
        attributes: &Attributes,
        what: String,
    ) -> Self {
        let message = Message::new(kind, REQUEST | flags, &header(family), attributes);
        self.steps.push(Step {
            message,
            family,
            what,
        });
        self
    }
}

fn header(family: Family) -> [u8; HEADER] {
    [family as u8, 0, 0, 0]
}

fn of_chain(chain: &Chain) -> Attributes {
    Attributes::new()
        .text(NFTA_RULE_TABLE, chain.table)
        .text(NFTA_RULE_CHAIN, chain.name)
}

/// Whether there is a table of that name.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn has_table(family: Family, name: &str) -> Result<bool, NetlinkError> {
    Ok(table_flags(family, name)?.is_some())
}

/// Reads a chain of the calling thread's network namespace.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn read(chain: &Chain) -> Result<Option<Present>, NetlinkError> {
    // Nothing of these is ours to set: a table that sleeps or has an owner.
    let awake = table_flags(chain.family, chain.table)? == Some(0);
    let chains = dump(GET_CHAIN, chain.family, "chains", |attributes| {
        is_chain(attributes, chain)
    })?;
    let Some(found) = chains.first() else {
        return Ok(None);
    };
    let intact = awake && is_on_hook(found, chain).map_err(NetlinkError::answer("chains"))?;
    let rules = dump(GET_RULE, chain.family, "rules", |attributes| {
        Ok(is_text(attributes, NFTA_RULE_TABLE, chain.table)?
            && is_text(attributes, NFTA_RULE_CHAIN, chain.name)?)
    })?;
    let rules: Result<Vec<_>, _> = rules.iter().map(|rule| expressions(rule)).collect();
    let rules = rules.map_err(NetlinkError::answer("rules"))?;
    Ok(Some(Present { intact, rules }))
}

fn table_flags(family: Family, name: &str) -> Result<Option<u32>, NetlinkError> {
    let tables = dump(GET_TABLE, family, "tables", |attributes| {
        is_text(attributes, NFTA_TABLE_NAME, name)
    })?;
    let flags = |attributes: &Vec<u8>| {
        let value = message::find(attributes, NFTA_TABLE_FLAGS)?;
        value.map_or(Ok(0), |value| message::be32_at(value, 0))
    };
    let flags = tables.first().map(flags).transpose();
    flags.map_err(NetlinkError::answer("tables"))
}

/// The attributes of those that are wanted.
fn dump(
    kind: u16,
    family: Family,
    what: &str,
    wanted: impl Fn(&[u8]) -> Result<bool, Malformed>,
) -> Result<Vec<Vec<u8>>, NetlinkError> {
    let request = Message::new(kind, 0, &header(family), &Attributes::new());
    let what = format!("{what} of {}", family.name());
    let replies = Socket::open(Protocol::Netfilter)?.dump(&what, request)?;
    let mut found = Vec::new();
    for Reply { body, .. } in replies {
        let attributes = body.get(HEADER..).ok_or(Malformed);
        let attributes = attributes.map_err(NetlinkError::answer(&what))?;
        if wanted(attributes).map_err(NetlinkError::answer(&what))? {
            found.push(attributes.to_vec());
        }
    }
    Ok(found)
}

fn is_text(attributes: &[u8], kind: u16, text: &str) -> Result<bool, Malformed> {
    Ok(message::find(attributes, kind)?.is_some_and(|value| message::text(value) == text))
}

fn is_chain(attributes: &[u8], chain: &Chain) -> Result<bool, Malformed> {
    Ok(is_text(attributes, NFTA_CHAIN_TABLE, chain.table)?
        && is_text(attributes, NFTA_CHAIN_NAME, chain.name)?)
}

fn is_on_hook(attributes: &[u8], chain: &Chain) -> Result<bool, Malformed> {
    let Some(hook) = message::find(attributes, NFTA_CHAIN_HOOK)? else {
        return Ok(false);
    };
    Ok(number(hook, NFTA_HOOK_HOOKNUM)? == Some(chain.hook)
        && number(hook, NFTA_HOOK_PRIORITY)? == Some(chain.priority.cast_unsigned())
        && number(attributes, NFTA_CHAIN_POLICY)? == Some(ACCEPT)
        && is_text(attributes, NFTA_CHAIN_TYPE, "filter")?)
}

fn number(attributes: &[u8], kind: u16) -> Result<Option<u32>, Malformed> {
    let value = message::find(attributes, kind)?;
    value.map(|value| message::be32_at(value, 0)).transpose()
}

fn encode(expression: &Expression) -> Attributes {
    let (name, data) = match expression {
        Expression::LoadInterface => ("meta", load(META_IIFNAME)),
        Expression::LoadMark => ("meta", load(META_MARK)),
        Expression::And(mask) => ("bitwise", and(*mask)),
        Expression::Equals(bytes) => ("cmp", equals(bytes)),
        Expression::Count(_) => ("counter", Attributes::new()),
        Expression::Drop => ("immediate", drop_it()),
        Expression::Other(name) => (name.as_str(), Attributes::new()),
    };
    Attributes::new()
        .text(NFTA_EXPR_NAME, name)
        .nest(NFTA_EXPR_DATA, &data)
}

fn load(key: u32) -> Attributes {
    Attributes::new()
        .be32(NFTA_META_KEY, key)
        .be32(NFTA_META_DREG, REGISTER)
}

fn value(bytes: &[u8]) -> Attributes {
    Attributes::new().put(NFTA_DATA_VALUE, bytes)
}

fn and(mask: u32) -> Attributes {
    Attributes::new()
        .be32(NFTA_BITWISE_SREG, REGISTER)
        .be32(NFTA_BITWISE_DREG, REGISTER)
        .be32(NFTA_BITWISE_LEN, 4)
        .nest(NFTA_BITWISE_MASK, &value(&mask.to_ne_bytes()))
        .nest(NFTA_BITWISE_XOR, &value(&[0; 4]))
}

fn equals(bytes: &[u8]) -> Attributes {
    Attributes::new()
        .be32(NFTA_CMP_SREG, REGISTER)
        .be32(NFTA_CMP_OP, EQUAL)
        .nest(NFTA_CMP_DATA, &value(bytes))
}

fn drop_it() -> Attributes {
    let verdict = Attributes::new().be32(NFTA_VERDICT_CODE, DROP);
    let data = Attributes::new().nest(NFTA_DATA_VERDICT, &verdict);
    Attributes::new()
        .be32(NFTA_IMMEDIATE_DREG, VERDICT)
        .nest(NFTA_IMMEDIATE_DATA, &data)
}

/// The expressions of a rule's attributes.
fn expressions(rule: &[u8]) -> Result<Vec<Expression>, Malformed> {
    let list = message::find(rule, NFTA_RULE_EXPRESSIONS)?.unwrap_or_default();
    let elements = message::attributes(list);
    elements.map(|element| decode(element?.1)).collect()
}

fn decode(element: &[u8]) -> Result<Expression, Malformed> {
    let name = message::find(element, NFTA_EXPR_NAME)?.map(message::text);
    let name = name.ok_or(Malformed)?;
    let data = message::find(element, NFTA_EXPR_DATA)?.unwrap_or_default();
    let known = match name.as_str() {
        "meta" => decode_load(data)?,
        "bitwise" => decode_and(data)?,
        "cmp" => decode_equals(data)?,
        "counter" => Some(Expression::Count(counter(data)?)),
        "immediate" => decode_drop(data)?,
        _ => None,
    };
    Ok(known.unwrap_or(Expression::Other(name)))
}

fn decode_load(data: &[u8]) -> Result<Option<Expression>, Malformed> {
    if number(data, NFTA_META_DREG)? != Some(REGISTER) {
        return Ok(None);
    }
    Ok(match number(data, NFTA_META_KEY)? {
        Some(META_IIFNAME) => Some(Expression::LoadInterface),
        Some(META_MARK) => Some(Expression::LoadMark),
        _ => None,
    })
}

fn decode_and(data: &[u8]) -> Result<Option<Expression>, Malformed> {
    let of = |kind| message::find(data, kind);
    let is_and = number(data, NFTA_BITWISE_SREG)? == Some(REGISTER)
        && number(data, NFTA_BITWISE_DREG)? == Some(REGISTER)
        && number(data, NFTA_BITWISE_LEN)? == Some(4)
        && number(data, NFTA_BITWISE_OP)?.unwrap_or(0) == 0
        && decode_value(of(NFTA_BITWISE_XOR)?)? == Some(&[0; 4]);
    let mask = decode_value(of(NFTA_BITWISE_MASK)?)?;
    let mask = mask.map(|mask| message::u32_at(mask, 0)).transpose()?;
    Ok(mask.filter(|_| is_and).map(Expression::And))
}

fn decode_equals(data: &[u8]) -> Result<Option<Expression>, Malformed> {
    let is_equals =
        number(data, NFTA_CMP_SREG)? == Some(REGISTER) && number(data, NFTA_CMP_OP)? == Some(EQUAL);
    let bytes = decode_value(message::find(data, NFTA_CMP_DATA)?)?;
    Ok(bytes
        .filter(|_| is_equals)
        .map(|bytes| Expression::Equals(bytes.to_vec())))
}

fn decode_value(nest: Option<&[u8]>) -> Result<Option<&[u8]>, Malformed> {
    message::find(nest.unwrap_or_default(), NFTA_DATA_VALUE)
}

fn counter(data: &[u8]) -> Result<Counter, Malformed> {
    let of = |kind| message::be64_at(message::find(data, kind)?.ok_or(Malformed)?, 0);
    Ok(Counter {
        packets: of(NFTA_COUNTER_PACKETS)?,
        bytes: of(NFTA_COUNTER_BYTES)?,
    })
}

fn decode_drop(data: &[u8]) -> Result<Option<Expression>, Malformed> {
    let nest = message::find(data, NFTA_IMMEDIATE_DATA)?.unwrap_or_default();
    let verdict = message::find(nest, NFTA_DATA_VERDICT)?.unwrap_or_default();
    let is_drop = number(data, NFTA_IMMEDIATE_DREG)? == Some(VERDICT)
        && number(verdict, NFTA_VERDICT_CODE)? == Some(DROP);
    Ok(is_drop.then_some(Expression::Drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for expression in [
            Expression::LoadInterface,
            Expression::LoadMark,
            Expression::And(0x10),
            Expression::Equals(b"veth".to_vec()),
            Expression::Drop,
            Expression::Other("limit".into()),
        ] {
            let encoded = encode(&expression);
            assert_eq!(decode(encoded.bytes()), Ok(expression));
        }
    }

    #[test]
    fn what_differs_in_anything_is_not_taken_for_ours() {
        let of = |name, data: &Attributes| {
            let element = Attributes::new()
                .text(NFTA_EXPR_NAME, name)
                .nest(NFTA_EXPR_DATA, data);
            decode(element.bytes()).unwrap()
        };
        let other = |name: &str| Expression::Other(name.into());
        let accept = Attributes::new().be32(NFTA_VERDICT_CODE, ACCEPT);
        let accept = Attributes::new().nest(NFTA_DATA_VERDICT, &accept);
        let accept = Attributes::new()
            .be32(NFTA_IMMEDIATE_DREG, VERDICT)
            .nest(NFTA_IMMEDIATE_DATA, &accept);
        assert_eq!(of("immediate", &accept), other("immediate"));
        let not_equal = Attributes::new()
            .be32(NFTA_CMP_SREG, REGISTER)
            .be32(NFTA_CMP_OP, 1)
            .nest(NFTA_CMP_DATA, &value(b"veth"));
        assert_eq!(of("cmp", &not_equal), other("cmp"));
        let shift = and(0x10).be32(NFTA_BITWISE_OP, 1);
        assert_eq!(of("bitwise", &shift), other("bitwise"));
        assert_eq!(of("meta", &load(4)), other("meta"));
    }
}
