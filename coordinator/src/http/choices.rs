//! `n`: how many choices continue each prompt.

use super::error::ApiError;
use super::fields::Fields;

/// Most choices of one prompt.
pub(super) const MAX_N: u32 = 16;
/// Most choices of one request, over all its prompts.
const MAX_CHOICES: usize = 128;

/// Takes `n`; 1 if absent.
pub(super) fn take(fields: &mut Fields<'_>, prompts: usize) -> Result<u32, ApiError> {
    let n = fields.integer("n", 1, i64::from(MAX_N))?;
    let n = n.and_then(|n| u32::try_from(n).ok()).unwrap_or(1);
    if n > 1 && prompts * n as usize > MAX_CHOICES {
        let problem = format!(
            "is {n}, for {prompts} prompts it must be at most {}: a request has at most {MAX_CHOICES} choices",
            (MAX_CHOICES / prompts.max(1)).max(1)
        );
        return Err(ApiError::invalid("n", problem));
    }
    Ok(n)
}
